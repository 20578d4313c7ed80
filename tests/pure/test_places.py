"""Where a provider is for one key: parameters of a host, hosts by the key's form, and nothing else that a caller could slip in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.catalog import Catalog, places, with_base_url
from keybearer.catalog.load import parse
from keybearer.errors import Invalid, KeybearerError
from keybearer.gateway.egress import egress_set, origin_of, placed

CATALOG = Catalog.load()
AZURE, BEDROCK, VOYAGE, OPENAI = (CATALOG.get(name) for name in ("azure", "bedrock", "voyage", "openai"))


def test_a_resource_becomes_a_part_of_the_host_and_of_the_egress_set() -> None:
    mine = places.at(AZURE, "kbtest", {"resource": "my-resource"})
    assert mine.base_url == "https://my-resource.openai.azure.com"
    assert egress_set(mine) == ("https://my-resource.openai.azure.com:443",)
    found = placed(AZURE, egress_set(mine))
    assert found is not None
    assert (found.base_url, found.roots, found.parameters) == (mine.base_url, AZURE.roots, ())


def test_a_region_is_in_the_host_of_the_test_too() -> None:
    mine = places.at(BEDROCK, "kbtest", {"region": "eu-central-1"})
    assert egress_set(mine) == (
        "https://bedrock-runtime.eu-central-1.amazonaws.com:443",
        "https://bedrock.eu-central-1.amazonaws.com:443",
    )
    found = placed(BEDROCK, egress_set(mine))
    assert found is not None
    assert found.test is not None
    assert found.test.base_url == "https://bedrock.eu-central-1.amazonaws.com"
    assert placed(BEDROCK, ["https://bedrock.eu-central-1.amazonaws.com:443"]) is None


@pytest.mark.parametrize(
    "resource",
    [
        "",
        "My-Resource",
        "-x",
        "x-",
        "a.b",
        "evil.example/",
        "evil.example#",
        "evil.example:443/",
        "x@evil.example",
        "x\\y",
        "x y",
        "x\n",
        "x%2e",
        "ü",
        "x" * 65,
        "{resource}",
        "\uff10",
    ],
)
def test_nothing_but_one_label_of_a_host_is_let_through(resource: str) -> None:
    with pytest.raises(Invalid) as refused:
        places.at(AZURE, "kbtest", {"resource": resource})
    assert refused.value.fields[0].field == "parameters.resource"
    assert placed(AZURE, [f"https://{resource}.openai.azure.com:443"]) is None


@pytest.mark.parametrize("region", ["us-east-1.evil", "us", "us-east", "evil-1", "us-east-1/", "us-gov-west-1x", "US-EAST-1"])
def test_a_region_has_the_form_of_one(region: str) -> None:
    with pytest.raises(Invalid):
        places.at(BEDROCK, "kbtest", {"region": region})
    assert places.at(BEDROCK, "kbtest", {"region": "us-gov-west-1"}).base_url.count("us-gov-west-1") == 1


@given(st.text(max_size=80))
def test_whatever_is_given_the_host_stays_the_providers(resource: str) -> None:
    try:
        host = origin_of(places.at(AZURE, "kbtest", {"resource": resource}).base_url).host
    except KeybearerError:
        return
    assert host == f"{resource}.openai.azure.com"


def test_parameters_are_neither_forgotten_nor_invented() -> None:
    with pytest.raises(Invalid, match="Resource name"):
        places.at(AZURE, "kbtest", {})
    with pytest.raises(Invalid):
        places.at(AZURE, "kbtest", {"resource": "x", "region": "us-east-1"})
    with pytest.raises(Invalid):
        places.at(OPENAI, "kbtest", {"resource": "x"})
    with pytest.raises(Invalid):  # a template is no address
        egress_set(AZURE)


def test_a_set_of_another_host_is_no_place() -> None:
    for other in (
        "https://evil.example:443",
        "https://x.openai.azure.com.evil.example:443",
        "https://x.openai.azure.com:8443",
        "http://x.openai.azure.com:443",
        "https://a.b.openai.azure.com:443",
        "x.openai.azure.com",
        "",
    ):
        assert placed(AZURE, [other]) is None
    assert placed(OPENAI, ["https://api.openai.com:443"]) is OPENAI
    assert placed(OPENAI, ["https://evil.example:443"]) is None


def test_voyages_host_goes_by_the_keys_prefix() -> None:
    atlas, own = places.at(VOYAGE, "al-kbtest", {}), places.at(VOYAGE, "pa-kbtest", {})
    assert (atlas.base_url, own.base_url) == ("https://ai.mongodb.com", "https://api.voyageai.com")
    for there in (atlas, own):
        found = placed(VOYAGE, egress_set(there))
        assert found is not None
        assert (found.base_url, found.roots) == (there.base_url, VOYAGE.roots)
    assert placed(VOYAGE, ["https://elsewhere.example:443"]) is None


def test_where_an_administrator_moved_it_there_is_one_place() -> None:
    for provider in (AZURE, VOYAGE, BEDROCK, CATALOG.get("huggingface")):
        moved = with_base_url(provider, "https://proxy.example/llm")
        assert egress_set(places.at(moved, "al-kbtest", {})) == ("https://proxy.example:443",)
        assert placed(moved, ["https://proxy.example:443"]) is moved


def test_what_has_no_address_of_its_own_is_bound_nowhere() -> None:
    postgresql = CATALOG.get("postgresql")
    assert egress_set(places.at(postgresql, "postgresql://kbtest", {})) == ()
    assert placed(postgresql, ()) is postgresql


ENTRY = "{display_name: X, category: model, logo: x, sources: [], apis: {openai: {prefix: /v1, auth: bearer}}, %s}"
REGION = "{region: {label: R, pattern: '[a-z]+', example: here}}"


@pytest.mark.parametrize(
    "fields",
    [
        "base_url: 'https://x.example', parameters: {region: {label: R, pattern: a, example: a}, more: {label: M, pattern: a, example: a}}",
        "base_url: 'https://{region}.{region}.example', parameters: " + REGION,
        "base_url: 'https://x.example', parameters: " + REGION,
        "base_url: 'https://{region}.example'",
        "base_url: 'https://x.example', places: [{key_pattern: x, base_url: 'https://y.example/other'}]",
        "base_url: 'https://x.example', test: {method: GET, path: /, dialect: gemini}",
        "base_url: 'https://{region}.example', parameters: {region: {label: R, pattern: '[a-z]+', example: '1'}}",
        "models: {chat: {}}",
    ],
)
def test_a_catalogue_whose_addresses_could_mean_two_things_is_not_loaded(fields: str) -> None:
    with pytest.raises(ValueError, match="x: "):
        parse("sharing: {}\nproviders: {x: " + ENTRY % fields + "}")
