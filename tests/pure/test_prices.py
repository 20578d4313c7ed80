"""Tokens to money: held against the price list's own calculation, and against made-up prices."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers as listed

from keybearer.catalog import Catalog
from keybearer.domain import MediaUsage, Usage
from keybearer.usage import prices
from keybearer.usage.prices import cost_micro_usd

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
AT = NOW.timestamp()
OURS = {
    **{name: name for name in ("openai", "anthropic", "openrouter", "meta", "cohere", "groq", "mistral", "together", "deepseek")},
    "google": "gemini",
    "x-ai": "xai",
    "voyageai": "voyage",
    "aws": "bedrock",
}
TEXT = {"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok", "output_reasoning_mtok"}


@pytest.fixture(autouse=True)
def _loaded() -> None:
    prices.load()


def _models() -> list[tuple[str, str, str]]:
    """Every model of our providers that has a price for text, by a name that the list knows it under."""
    return [
        (OURS[provider.id], provider.id, model.id)
        for provider in listed
        if provider.id in OURS
        for model in provider.models
        if provider.find_model(model.id) is model
        if {"input_mtok", "output_mtok"} <= (known := {name for name, value in vars(model.get_prices(NOW)).items() if value})
        and "audio_hours" not in known
    ]


def _theirs(provider: str, model: str, usage: Usage) -> int:
    said: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.long_cache_write_tokens,
        "output_reasoning_tokens": usage.reasoning_tokens,
    }
    price = genai_prices.calc_price(genai_prices.Usage(**said), model, provider_id=provider, genai_request_timestamp=NOW)
    return int((price.total_price * 1_000_000).to_integral_value(ROUND_CEILING))


def test_our_figures_are_the_price_lists_own() -> None:
    chance = random.Random(7)
    models = _models()
    assert len(models) > 500
    assert {ours for ours, _, _ in models} == set(OURS.values()) - {"voyage"}  # which makes nothing
    for ours, theirs, model in models:
        given = chance.choice([9, 1_000, 150_000, 250_000, 1_000_000])
        cached, written = chance.randrange(given // 2), chance.randrange(given // 2)
        made = chance.randrange(1, 5_000)
        usage = Usage(given, made, cached, written, chance.randrange(made), None, None, chance.randrange(written + 1))
        assert cost_micro_usd(ours, model, usage, AT) == _theirs(theirs, model, usage), model


def test_known_prices() -> None:
    """gpt-4o: $2.50 and $10.00 a million tokens, $1.25 cached (OpenAI's price page; the package's list of 2026-11)."""
    assert cost_micro_usd("openai", "gpt-4o", Usage(1_000_000, 0), AT) == 2_500_000
    assert cost_micro_usd("openai", "gpt-4o", Usage(1_000, 100), AT) == 3_500
    assert cost_micro_usd("openai", "gpt-4o", Usage(1_000, 100, 400), AT) == 3_000
    assert cost_micro_usd("openai", "gpt-4o", Usage(1_000, 100, 400, None, 90), AT) == 3_000
    assert cost_micro_usd("openai", "text-embedding-3-small", Usage(1_000_000), AT) == 20_000


def test_every_provider_of_models_has_its_prices() -> None:
    """All of the catalogue's but one that runs at home: each by a model that its entry lists."""
    usage = Usage(1_000_000, 0)
    for provider in Catalog.load().providers.values():
        if provider.category == "model" and provider.name not in {"azure", "huggingface", "ollama", "openrouter"}:
            assert any(cost_micro_usd(provider.name, model.name, usage, AT) for model in provider.models), provider.name
    assert cost_micro_usd("openrouter", "openai/gpt-4o", usage, AT) == 2_500_000
    assert cost_micro_usd("voyage", "voyage-4", Usage(1_000_000), AT) == _theirs("voyageai", "voyage-4", Usage(1_000_000))


def test_an_azure_deployment_costs_what_answered() -> None:
    """Its name is the account's own: one that is called gpt-4o-mini may be anything."""
    usage = Usage(1_000_000, 0, model="gpt-4o-2024-08-06")
    for name in ("my-gpt", "gpt-4o-mini", "gpt-4o"):
        assert cost_micro_usd("azure", name, usage, AT) == 2_500_000
        assert cost_micro_usd("azure", name, Usage(1_000_000, 0), AT) is None
        assert prices.most_micro_usd("azure", name, 10, 10, AT) is None
        assert prices.context_window("azure", name) is None


def test_a_router_costs_what_the_name_says_who_serves() -> None:
    usage = Usage(1_000_000, 1_000_000)
    found = cost_micro_usd("huggingface", "openai/gpt-oss-120b:groq", usage, AT)
    assert found == _theirs("huggingface_groq", "openai/gpt-oss-120b", usage)
    for name in ("openai/gpt-oss-120b", "openai/gpt-oss-120b:fastest", "openai/gpt-oss-120b:", ":groq", ":"):
        assert cost_micro_usd("huggingface", name, usage, AT) is None


def test_what_is_charged_by_its_length_too_has_no_price() -> None:
    assert cost_micro_usd("mistral", "voxtral-small-24b-2507", Usage(100, 10), AT) is None


def test_a_dated_name_and_an_alias_cost_the_same() -> None:
    usage = Usage(1_000, 100)
    assert cost_micro_usd("openai", "gpt-4o-2024-08-06", usage, AT) == cost_micro_usd("openai", "gpt-4o", usage, AT)
    assert cost_micro_usd("gemini", "models/gemini-2.5-flash", usage, AT) == cost_micro_usd(
        "gemini", "gemini-2.5-flash", usage, AT
    )
    # An alias that the list does not know is priced by the model that answered.
    assert cost_micro_usd("openai", "my-alias", Usage(1_000, 100, model="gpt-4o-2024-08-06"), AT) == 3_500


def test_a_cost_is_rounded_up_and_never_shown_as_nothing() -> None:
    assert cost_micro_usd("openai", "gpt-4o-mini", Usage(1, 0), AT) == 1
    assert cost_micro_usd("openai", "gpt-4o", Usage(0, 0), AT) == 0


@pytest.mark.parametrize(
    ("provider", "model", "usage"),
    [
        ("mine", "gpt-4o", Usage(1, 1)),
        ("openai", "no-such-model", Usage(1, 1)),
        ("openai", "", Usage(1, 1)),
        ("openai", "gpt-4o", Usage()),
        ("openai", "gpt-4o", Usage(None, 5)),
        ("openai", "gpt-4o", Usage(5, None)),
        ("openai", "whisper-1", Usage(5, 5)),
        ("openai", "text-embedding-3-small", Usage(5, 5)),
        ("gemini", "gemma-3", Usage(5, 5)),
    ],
)
def test_what_is_unknown_is_none_and_not_zero(provider: str, model: str, usage: Usage) -> None:
    assert cost_micro_usd(provider, model, usage, AT) is None


def test_a_cost_that_the_provider_stated_wins() -> None:
    assert cost_micro_usd("openrouter", "some/model", Usage(5, 5, cost_usd=0.00095), AT) == 950
    assert cost_micro_usd("xai", "grok-4.3", Usage(5, 5, cost_usd=0.0037756), AT) == 3_776
    assert cost_micro_usd("openrouter", "some/model:free", Usage(5, 5, cost_usd=0.0), AT) == 0
    assert cost_micro_usd("mine", "m", Usage(cost_usd=1e-9), AT) == 1


def test_prices_follow_the_date_and_the_size() -> None:
    def cost(given: int) -> int:
        found = cost_micro_usd("gemini", "gemini-2.5-pro", Usage(given, 0), AT)
        assert found is not None
        return found

    assert cost(200_000) == 250_000
    assert cost(200_001) == 500_003  # above the step, all tokens cost more
    dated = [
        (provider, model)
        for provider in listed
        if provider.id == "openai"
        for model in provider.models
        if model.id == "o3" and isinstance(model.prices, list)
    ]
    assert dated
    before = cost_micro_usd("openai", "o3", Usage(1_000, 0), datetime(2025, 5, 1, tzinfo=UTC).timestamp())
    assert before is not None
    assert before > (cost_micro_usd("openai", "o3", Usage(1_000, 0), AT) or 0)


def test_cached_tokens_never_exceed_what_was_given() -> None:
    usage = Usage(10, 0, 10_000, 10_000, None, None, None, 10_000)
    found = cost_micro_usd("anthropic", "claude-sonnet-4-0", usage, AT)
    assert found is not None
    assert 0 < found <= 60


def test_invented_models_do_not_fill_memory() -> None:
    for number in range(5_000):
        cost_micro_usd("openai", f"invented-{number}", Usage(1, 1), AT)
    assert len(prices._loaded[0]._models) <= 4_096


def test_nothing_is_loaded_before_it_is_asked_for_and_no_calculation_waits_for_it() -> None:
    code = (
        "import sys; from datetime import UTC, datetime; import keybearer.usage.prices as p; from keybearer.domain import Usage;"
        "cost = lambda: p.cost_micro_usd('openai', 'gpt-4o-mini', Usage(1_000, 10), datetime.now(UTC));"
        "assert cost() is None; assert 'genai_prices' not in sys.modules;"
        "p.load(); assert 'genai_prices.data' in sys.modules; assert cost() > 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_scaled_prices_are_exact() -> None:
    for provider in listed:
        if provider.id not in OURS:
            continue
        for model in provider.models:
            for name, value in vars(model.get_prices(NOW)).items():
                if name in TEXT and isinstance(value, Decimal):
                    assert value * prices._SCALE == prices._scaled(value), (model.id, name)


MEDIA = [
    # Sound at 6 dollars a million, text at 2.5, output at 10.
    ("gpt-4o-transcribe", MediaUsage(14, 45, audio_tokens=14), 14 * 6 + 45 * 10),
    ("gpt-4o-transcribe", MediaUsage(20, 45, audio_tokens=14), 14 * 6 + 6 * Decimal("2.5") + 45 * 10),
    # An image at 10, text at 5, the image made at 40.
    ("gpt-image-1", MediaUsage(150, 4160, image_tokens=100), 100 * 10 + 50 * 5 + 4160 * 40),
    ("gpt-image-1", Usage(50, 4160), 50 * 5 + 4160 * 40),
    # No price of its own: an image is charged as text, sound by a price that nobody stated.
    ("gpt-4o-mini", MediaUsage(1_000_000, 0, image_tokens=5), 150_000),
    ("gpt-4o-audio-preview", MediaUsage(100, 60, audio_tokens=80), None),
    ("gpt-4o-audio-preview", MediaUsage(100, 60, audio_output_tokens=40), None),
    # Of what was cached nobody says what it was.
    ("gpt-image-1", MediaUsage(150, 4160, 20, image_tokens=100), None),
    ("gpt-4o-transcribe", MediaUsage(14, 45, audio_tokens=15), None),
    # Charged by the second or by the picture: no tokens, no price, and never nothing.
    ("whisper-1", Usage(), None),
    ("whisper-1", MediaUsage(14, 45, audio_tokens=14), None),
    ("dall-e-3", Usage(), None),
]


@pytest.mark.parametrize(("model", "usage", "cost"), MEDIA)
def test_sound_and_images_have_prices_of_their_own_or_none(model: str, usage: Usage, cost: Decimal | int | None) -> None:
    expected = None if cost is None else int(Decimal(cost).to_integral_value(ROUND_CEILING))
    assert cost_micro_usd("openai", model, usage, datetime(2026, 11, 21, tzinfo=UTC).timestamp()) == expected
