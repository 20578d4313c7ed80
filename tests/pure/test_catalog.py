"""The catalogue: what comes with the package, whose model a name means, what a key looks like, what a listing shows."""

from __future__ import annotations

import re
import time
from datetime import date
from importlib.resources import files
from uuid import UUID

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from keybearer.catalog import (
    DIALECTS,
    Catalog,
    Entry,
    KeyCheck,
    Model,
    Provider,
    Registered,
    Registry,
    check_key,
    custom,
    preview,
    with_base_url,
    with_models,
    with_registered,
)
from keybearer.catalog.load import parse
from keybearer.domain import SYSTEM_OWNER, SecretType
from keybearer.errors import Invalid, KeybearerError, ModelAmbiguous, ModelUnknown, ProviderUnknown

CATALOG = Catalog.load()
OWNER = UUID(int=7)

KEYS = {
    "openai": "sk-proj-kbtest_" + "A1b2C3d4" * 6,
    "anthropic": "sk-ant-api03-kbtest-" + "A1b2C3d4" * 10,
    "gemini": "AIza" + "kbtest-" + "x" * 28,
    "xai": "xai-kbtest" + "A1b2C3d4" * 9,
    "openrouter": "sk-or-v1-" + "0123456789abcdef" * 4,
    "huggingface": "hf_kbtest" + "A1b2C3d4" * 4,
    "voyage": "pa-kbtest-" + "A1b2C3d4" * 5,
    "groq": "gsk_kbtest" + "A1b2C3d4" * 6,
    "together": "tgp_v1_kbtest-" + "A1b2C3d4" * 5,
    "bedrock": "ABSKkbtest" + "A1b2C3d4" * 12 + "=",
    "slack": "xoxb-kbtest-0123456789-" + "A1b2C3d4" * 3,
    "google_drive": "ya29.kbtest-" + "A1b2C3d4" * 6,
    "pinecone": "pcsk_kbtest_" + "A1b2C3d4" * 7,
    "postgresql": "postgresql://kbuser:kbtest pass/word@db.example:5432/app",
    "mysql": "mysql+pymysql://kbuser:kbtest@db.example/app",
    "smtp": "smtps://kbuser:kbtest@mail.example:465",
    "webhook": "whsec_kbtest" + "A1b2C3d4" * 4,
}
SHARED_FORMS = {
    "cohere": "kbtest" + "A1b2C3d4" * 4 + "xy",
    "mistral": "kbtest" + "A1b2C3d4" * 3 + "xy",
    "together": "0a" * 32,
    "deepseek": "sk-" + "0a" * 16,
    "azure": "0a" * 16,
    "pinecone": "01234567-89ab-cdef-0123-456789abcdef",
    "postgresql": "host=db.example user=kbuser password=kbtest",
    "webhook": "kbtest whatever somebody chose, ü too",
    "meta": "kbtest-of-no-known-form",
    "reddit": "kbtest-of-no-known-form",
    "ollama": "ollama",
}


def _custom(name: str, *models: str, base_url: str = "https://llm.example/v1") -> Provider:
    return custom(name, name.title(), base_url, "bearer", "", [Model(model, model) for model in models], OWNER)


# --- the file ---------------------------------------------------------------------------------------------------------


NAMES = (
    *("openai", "anthropic", "gemini", "xai", "openrouter", "meta", "huggingface", "cohere", "voyage", "groq", "mistral"),
    *("together", "deepseek", "azure", "bedrock", "ollama"),
    *("slack", "google_drive", "reddit", "postgresql", "mysql", "pinecone", "smtp", "webhook"),
)


def test_the_catalogue_has_all_providers() -> None:
    assert tuple(CATALOG.providers) == NAMES
    assert Catalog.load() is CATALOG


@pytest.mark.parametrize("provider", CATALOG.providers.values(), ids=lambda provider: provider.name)
def test_each_entry_is_whole(provider: Provider) -> None:
    assert provider.logo
    assert provider.docs_url.startswith("https://")
    assert set(provider.apis) <= set(DIALECTS)
    for api in provider.apis.values():
        assert api.auth.header == api.auth.header.lower() != ""
    assert all(name == name.lower() for name, _ in provider.headers)
    if not provider.base_url:
        assert provider.secret_type in {SecretType.CONNECTION_STRING, SecretType.WEBHOOK_SECRET}
        assert (dict(provider.apis), provider.test) == ({}, None)
        return
    assert provider.base_url.startswith("https://" if provider.name != "ollama" else "http://localhost")
    assert provider.test is not None
    assert provider.test.dialect in provider.apis
    assert provider.test.path.startswith("/")
    assert provider.keys_url.startswith("https://")
    assert provider.models or provider.parameters or provider.category != "model"


ROOTS = {
    "openai": {"openai": b"/v1"},
    "anthropic": {"anthropic": b"/v1", "openai": b"/v1"},
    "gemini": {"gemini": b"", "openai": b"/v1beta/openai"},
    "xai": {"openai": b"/v1"},
    "openrouter": {"openai": b"/api/v1", "anthropic": b"/api/v1"},
    "meta": {"openai": b"/v1"},
    "huggingface": {"openai": b"/v1"},
    "cohere": {"openai": b"/compatibility/v1", "http": b""},
    "voyage": {"openai": b"/v1"},
    "groq": {"openai": b"/openai/v1"},
    "mistral": {"openai": b"/v1"},
    "together": {"openai": b"/v1"},
    "deepseek": {"openai": b"/v1", "anthropic": b"/anthropic/v1"},
    "azure": {"openai": b"/openai/v1"},
    "bedrock": {"openai": b"/openai/v1"},
    "ollama": {"openai": b"/v1"},
    "slack": {"http": b"/api"},
    "google_drive": {"http": b""},
    "reddit": {"http": b""},
    "pinecone": {"http": b""},
}


def test_the_root_path_of_each_api() -> None:
    assert {name: dict(provider.roots) for name, provider in CATALOG.providers.items() if provider.apis} == ROOTS


def test_the_file_names_no_package_registry_and_no_key_in_a_url() -> None:
    text = (files("keybearer.catalog") / "providers.yaml").read_text(encoding="utf-8")
    assert not re.search(r"pypi|npmjs|crates\.io|proxy\.golang|maven", text)
    assert not re.search(r"[?&](?:api_?)?key=", text)


def test_each_entry_names_its_source_and_the_day_it_was_compared() -> None:
    text = (files("keybearer.catalog") / "providers.yaml").read_text(encoding="utf-8")
    for entry in yaml.safe_load(text)["providers"].values():
        for source in entry["sources"]:
            assert source["url"].startswith("https://")
            assert date.fromisoformat(source["checked"]) >= date(2026, 11, 1)


@pytest.mark.parametrize(
    "text", ["sharing: {}\nproviders: {x: {display_name: X}}", "sharing: {}\nproviders: {}\nmore: 1", "providers: {}"]
)
def test_a_file_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expected|unknown|missing"):
        parse(text)


def test_upstream_paths_follow_the_base_url() -> None:
    assert CATALOG.get("openai").roots["openai"] == b"/v1"
    assert CATALOG.get("gemini").roots == {"gemini": b"", "openai": b"/v1beta/openai"}
    assert CATALOG.get("openrouter").roots["anthropic"] == b"/api/v1"
    # People write a base URL with and without the version; both mean the same.
    openai = CATALOG.get("openai")
    assert with_base_url(openai, "https://proxy.example/llm").roots["openai"] == b"/llm/v1"
    assert with_base_url(openai, "https://proxy.example/llm/v1/").roots["openai"] == b"/llm/v1"
    assert with_base_url(openai, "http://127.0.0.1:9/").base_url == "http://127.0.0.1:9"


def test_added_models_join_the_providers_own() -> None:
    openai = with_models(CATALOG.get("openai"), [Model("gpt-5", "Mine"), Model("gpt-new", "New"), Model("gpt-new", "Twice")])
    names = [model.name for model in openai.models]
    assert names.count("gpt-5") == names.count("gpt-new") == 1
    assert next(model for model in openai.models if model.name == "gpt-5").display_name == "GPT-5"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "llm.example/v1",
        "ftp://llm.example",
        "https://",
        "https://user:kbtest-password@llm.example",
        "https://llm.example/v1?key=kbtest",
        "https://llm.example/v1?",
        "https://llm.example/v1#x",
        "https://llm.example/a/../b",
        "https://llm.example/.",
        "https://llm.example/a//b",
        "https://llm.example/a%2fb",
        "https://llm.example/a b",
        "https://llm.example/a\r\nX: y",
        "https://llm.example\\@evil.example/",
        "https://llm.example:0/",
        "https://llm.example:99999/",
        "https://[::1/",
        "https://exämple.example/",
    ],
)
def test_a_base_url_that_could_mean_two_things_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as refused:
        _custom("mine", base_url=url)
    assert refused.value.fields[0].field == "base_url"
    assert "kbtest" not in str(refused.value)


def test_a_custom_provider_says_which_fields_are_wrong() -> None:
    with pytest.raises(Invalid) as refused:
        custom("Bad Name", "", "https://x.example", "magic", "", [], OWNER)
    assert [wrong.field for wrong in refused.value.fields] == ["name", "auth_style"]
    with pytest.raises(Invalid):
        custom("ok", "", "https://x.example", "header", "x key:", [], OWNER)
    assert custom("ok", "", "https://x.example", "header", "X-Key", [], OWNER).apis["openai"].auth.header == "x-key"


# --- whose model ------------------------------------------------------------------------------------------------------

LOCATED = [
    ("gpt-5", None, "openai", "gpt-5"),
    ("gpt-99-unheard-of", None, "openai", "gpt-99-unheard-of"),
    ("ft:gpt-4o:acme::abc", None, "openai", "ft:gpt-4o:acme::abc"),
    ("o3", None, "openai", "o3"),
    ("claude-opus-9", None, "anthropic", "claude-opus-9"),
    ("models/gemini-2.5-pro", None, "gemini", "models/gemini-2.5-pro"),
    ("grok-4.7", None, "xai", "grok-4.7"),
    ("openai/gpt-5", None, "openai", "gpt-5"),
    ("anthropic/claude-sonnet-5-5", None, "anthropic", "claude-sonnet-5-5"),
    ("openrouter/meta-llama/llama-4", None, "openrouter", "meta-llama/llama-4"),
    ("openrouter/auto", None, "openrouter", "openrouter/auto"),
    ("whatever", "anthropic", "anthropic", "whatever"),
    ("no-such/model", "gemini", "gemini", "no-such/model"),
    ("xai/grok-4.7", "anthropic", "xai", "grok-4.7"),
    ("mine/qwen2.5:7b", None, "mine", "qwen2.5:7b"),
    ("qwen2.5:7b", None, "mine", "qwen2.5:7b"),
    ("@cf/meta/llama", None, "mine", "@cf/meta/llama"),
]


@pytest.mark.parametrize(("name", "home", "provider", "model"), LOCATED)
def test_a_name_means_one_provider_and_its_own_name_of_the_model(name: str, home: str | None, provider: str, model: str) -> None:
    registry = Registry([*CATALOG.providers.values(), _custom("mine", "qwen2.5:7b", "@cf/meta/llama")])
    for _ in range(2):  # looked up, then remembered
        found, bare = registry.locate(name, home)
        assert (found.name, bare) == (provider, model)


def test_a_bare_name_that_two_providers_have_must_be_qualified() -> None:
    registry = Registry([*CATALOG.providers.values(), _custom("mine", "gpt-5")])
    with pytest.raises(ModelAmbiguous) as refused:
        registry.locate("gpt-5")
    assert "'openai/gpt-5'" in refused.value.hint
    assert "'mine/gpt-5'" in refused.value.hint


def test_a_custom_provider_never_hides_a_predefined_one() -> None:
    registry = Registry([_custom("openai", "gpt-5", base_url="https://evil.example"), *CATALOG.providers.values()])
    assert registry.get("openai").is_predefined
    assert registry.locate("openai/gpt-5")[0].is_predefined


def test_an_alias_means_its_model_and_never_a_providers_name() -> None:
    openai, groq = CATALOG.get("openai"), CATALOG.get("groq")
    first = with_registered(openai, Registered(UUID(int=1), SYSTEM_OWNER, base_url="https://llm.example/x"))
    later = with_registered(groq, Registered(UUID(int=2), SYSTEM_OWNER))
    entries = [Entry(first, "gpt-5", ("fast", "claude-x")), Entry(later, "llama", ("fast", "openai/o3", "slow"))]
    registry = Registry(CATALOG.providers.values(), entries)
    for name in ("fast", "gpt-5", "openai/gpt-5", "claude-x"):
        assert registry.locate(name) == (first, "gpt-5")
    assert registry.locate("fast", "anthropic") == (first, "gpt-5")
    assert registry.locate("slow") == registry.locate("groq/llama") == (later, "llama")
    assert registry.locate("openai/o3") == (openai, "o3")
    assert registry.locate("claude-y")[0].name == "anthropic"
    assert (first.roots["openai"], first.is_predefined, later.is_predefined) == (b"/x/v1", False, True)


@pytest.mark.parametrize("name", ["", "x" * 201, "a b", "a\nb", "a\x00b", "\ud800", "a\u200bb", "\u202egpt"])
def test_what_cannot_be_a_models_name_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        Registry(CATALOG.providers.values()).locate(name)
    assert refused.value.hint
    assert refused.value.fields[0].field == "model"
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("name", ["llama-3", "nobody/llama-3", "/gpt-5", "openai/", "OpenAI/gpt-5", "x" * 200])
def test_an_unknown_model_is_named_and_cut_short(name: str) -> None:
    with pytest.raises(ModelUnknown) as refused:
        Registry(CATALOG.providers.values()).locate(name)
    assert len(refused.value.message) < 120


def test_an_unknown_provider() -> None:
    with pytest.raises(ProviderUnknown):
        Registry([]).get("openai")
    with pytest.raises(ProviderUnknown):
        CATALOG.get("nobody")


def test_invented_names_do_not_fill_memory() -> None:
    registry = Registry(CATALOG.providers.values())
    for number in range(2_500):
        registry.locate(f"gpt-{number}")
    assert len(registry._found) <= 1_000


@given(st.text(), st.sampled_from([None, "openai", "nobody"]))
def test_locating_raises_nothing_but_our_own_errors(name: str, home: str | None) -> None:
    try:
        _, model = Registry(CATALOG.providers.values()).locate(name, home)
    except KeybearerError:
        return
    assert name.endswith(model)


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "key"), KEYS.items())
def test_pasting_a_key_detects_its_provider(name: str, key: str) -> None:
    provider = CATALOG.get(name)
    assert CATALOG.detect(key) == (name,)
    assert CATALOG.check_key(provider, key, provider.secret_type) == KeyCheck()


@pytest.mark.parametrize(("name", "key"), SHARED_FORMS.items())
def test_a_form_that_others_have_too_is_well_and_tells_nothing(name: str, key: str) -> None:
    provider = CATALOG.get(name)
    assert CATALOG.detect(key) == ()
    assert CATALOG.check_key(provider, key, provider.secret_type) == KeyCheck()


def test_every_provider_has_a_key_in_these_tables() -> None:
    assert set(KEYS) | set(SHARED_FORMS) == set(NAMES)


@pytest.mark.parametrize("provider", CATALOG.providers.values(), ids=lambda provider: provider.name)
def test_a_key_of_anothers_is_doubtful_everywhere_and_refused_nowhere(provider: Provider) -> None:
    if provider.name == "webhook":  # any text will do
        return
    for name, key in KEYS.items():
        if name == provider.name or name in {"postgresql", "mysql", "smtp"}:
            continue
        found = CATALOG.check_key(provider, key, provider.secret_type)
        assert found.refused is None
        assert any(CATALOG.get(name).display_name in warning for warning in found.warnings), name


def test_the_newer_gemini_keys_and_the_older_openai_keys_are_known() -> None:
    assert CATALOG.detect("AQ.Ab8RN6" + "kbtest_-" * 6) == ("gemini",)
    assert CATALOG.detect("sk-" + "a" * 20 + "T3BlbkFJ" + "b" * 20) == ("openai",)
    assert CATALOG.detect("sk-" + "0a" * 16) == ()  # DeepSeek's begin so, and others'
    assert CATALOG.detect("al-kbtest-" + "A1b2C3d4" * 5) == ("voyage",)


def test_other_types_of_secret_are_not_held_to_the_forms_of_keys() -> None:
    openai, text = CATALOG.get("openai"), "kbtest any text\nof any form"
    assert CATALOG.check_key(openai, text, SecretType.CUSTOM) == KeyCheck()
    assert CATALOG.check_key(openai, text, SecretType.WEBHOOK_SECRET) == KeyCheck()
    assert CATALOG.check_key(CATALOG.get("postgresql"), "kbtest-no-dsn", SecretType.CONNECTION_STRING).warnings
    assert CATALOG.check_key(CATALOG.get("slack"), "kbtest-no-token", SecretType.OAUTH_TOKEN).warnings
    assert CATALOG.check_key(CATALOG.get("slack"), '{"access_token": "xoxb-kbtest"}', SecretType.OAUTH_TOKEN) == KeyCheck()


def test_a_value_with_many_beginnings_is_not_tried_from_each() -> None:
    began = time.thread_time()
    text = "kbtest" + " host=" * 10_000 + "\nx"
    assert CATALOG.check_key(CATALOG.get("postgresql"), text, SecretType.CONNECTION_STRING).warnings
    assert time.thread_time() - began < 0.1


@pytest.mark.parametrize(
    ("provider", "key", "words"),
    [
        ("openai", "sk-admin-kbtest" + "x" * 40, "admin key"),
        ("anthropic", "sk-ant-admin01-kbtest" + "x" * 40, "admin key"),
        ("xai", "xai-token-kbtest" + "x" * 60, "management key"),
        ("bedrock", "AKIA" + "KBTESTKBTESTKBTE", "access key"),
        ("openai", "", "empty"),
        ("openai", "sk-proj-kbtest\nmore", "line break"),
        ("openai", " sk-proj-kbtest", "white space"),
        ("openai", "sk-proj-\u00a0kbtest", "white space"),
        ("openai", "sk-proj-\u200bkbtest", "invisible"),
        ("openai", "“sk-proj-kbtest”", "typographic"),
        ("openai", "sk-proj\x00kbtest", "control"),
        ("openai", "sk-proj\x7fkbtest", "control"),
        ("openai", "sk-p…1234", "masked"),
        ("openai", "****************", "masked"),
        ("openai", "sk-p••••••••1234", "masked"),
        ("openai", "x" * 20_000, "longer"),
        ("openai", "kb_" + "a" * 12 + "_" + "b" * 38, "Keybearer"),
    ],
)
def test_what_is_surely_wrong_is_refused_and_never_repeated(provider: str, key: str, words: str) -> None:
    found = CATALOG.check_key(CATALOG.get(provider), key)
    assert found.refused is not None
    assert words in found.refused
    assert "kbtest" not in found.refused


def test_a_swapped_key_is_a_warning_that_names_its_provider() -> None:
    found = CATALOG.check_key(CATALOG.get("openai"), KEYS["anthropic"])
    assert found.refused is None
    assert "Anthropic" in found.warnings[0]
    assert check_key(CATALOG.get("openai"), "kbtest-form-of-tomorrow").warnings == ("This does not look like a key of OpenAI.",)
    assert check_key(_custom("mine"), "kbtest-anything") == KeyCheck()


# --- previews ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("abcdefghijklmnopqrstuvwxyz", "abcd…wxyz"),
        ("a" * 24, "aaaa…aaaa"),
        ("abcdefghijklmnopqrstuvw", "ab…vw"),
        ("abcdefghijkl", "ab…kl"),
        ("abcdefghijk", ""),
        ("", ""),
    ],
)
def test_a_preview_shows_no_more_than_it_may(value: str, shown: str) -> None:
    assert preview(value, SecretType.API_KEY) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgresql://kbuser:kbtest-pw@db.example:5432/app?password=kbtest", "postgresql://db.example"),
        ("postgresql+psycopg://db.example/app", "postgresql+psycopg://db.example"),
        ("mysql://u:kbtest@[::1]:3306/x", "mysql://[::1]"),
        # A password may hold what ends an authority: then the host is not shown either.
        ("postgres://u:kbtest/pw@db.example/app", "postgres://…"),
        ("redis://:kbtest#pw@db.example", "redis://…"),
        ("redis://:kbtest?pw@db.example", "redis://…"),
        ("postgres://u:kb@test@db.example", "postgres://…"),
        ("postgres://u:kbtest\\pw@db.example", "postgres://…"),
        ("postgres://kb test/", "postgres://…"),
        ("postgres://[::1/x", "postgres://…"),
        ("postgres://", "postgres://…"),
        ("host=db.example password=kbtest", ""),
        ("u:kbtest@tcp(db.example)/x", ""),
        ("Server=db;Password=kbtest://x", ""),
    ],
)
def test_a_connection_string_shows_scheme_and_host_only(value: str, shown: str) -> None:
    assert preview(value, SecretType.CONNECTION_STRING) == shown


@given(st.from_regex(r"[a-z]{2,9}://[a-z]{1,8}:[^@\s]{8,30}@[a-z]{1,9}\.example(:\d{2,4})?(/[a-z]*)?", fullmatch=True))
def test_no_part_of_a_password_is_ever_shown(value: str) -> None:
    password = re.match(r"[a-z]+://[a-z]+:(.*)@", value)
    assert password is not None
    shown = preview(value, SecretType.CONNECTION_STRING)
    host = shown.partition("://")[2]
    assert host == "…" or value.partition("@")[2].startswith(host)


@given(st.text())
def test_previews_and_checks_never_fail(value: str) -> None:
    for secret_type in SecretType:
        shown = preview(value, secret_type)
        assert len(shown) < max(len(value), 1) + 5
    CATALOG.check_key(CATALOG.get("openai"), value)


def test_a_variables_name_is_one_providers() -> None:
    names = [name for provider in CATALOG.providers.values() for name in provider.variables]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]+", name) for name in names)
    assert all(provider.variables for provider in CATALOG.providers.values() if provider.category == "model")
