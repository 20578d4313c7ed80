"""What an operator says that models cost: what is read, what it comes to, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.domain import MediaUsage, Usage
from keybearer.errors import SettingsInvalid
from keybearer.usage import prices
from keybearer.usage.own_prices import read
from keybearer.usage.prices import cost_micro_usd, most_micro_usd

AT = 1_795_262_400.0
MILLION = 1_000_000
STATED = """
openai/gpt-4o: {input: 2.0, output: 8, cached: 1.0}
azure/my-gpt: {input: 2.5, output: 10, reasoning: 20}
anthropic/claude-sonnet-4-5: {input: 1, output: 5, cache_write: 2, long_cache_write: 3}
gemini/gemini-2.5-flash: {input: 0.1, output: 0.4}
house/vendor/llama-4:8b: {input: 0.2, output: 0.6}
house/vectors: {input: 0.000001}
ollama/*: {input: 0, output: 0}
ollama/dear: {input: 1, output: 1}
"""


@pytest.fixture(autouse=True)
def _stated() -> Iterator[None]:
    prices.load()
    prices.set_own(read(STATED))
    yield
    prices.set_own({})


@pytest.mark.parametrize(
    ("name", "usage", "cost"),
    [
        ("openai/gpt-4o", Usage(MILLION, MILLION), 10_000_000),
        ("openai/gpt-4o", Usage(MILLION, 0, 400_000), 1_600_000),
        ("openai/gpt-4o", Usage(MILLION, 0, cost_usd=77.0), 2_000_000),  # also before what the provider states
        ("openai/gpt-4o", Usage(MILLION, 0, None, MILLION), 2_000_000),
        ("openai/gpt-4o-mini", Usage(MILLION, 0), 150_000),  # not named: as listed
        ("azure/my-gpt", Usage(MILLION, MILLION, None, None, 500_000, "gpt-4o-2024-08-06"), 2_500_000 + 5_000_000 + 10_000_000),
        ("azure/other", Usage(MILLION, 0, model="gpt-4o-2024-08-06"), 2_500_000),
        (
            "anthropic/claude-sonnet-4-5",
            Usage(MILLION, 0, None, 600_000, None, None, None, 100_000),
            400_000 + 1_000_000 + 300_000,
        ),
        ("gemini/models/gemini-2.5-flash", Usage(MILLION, 0), 100_000),
        ("house/vendor/llama-4:8b", Usage(1, 0), 1),
        ("house/vendor/llama-4:8b", Usage(MILLION, MILLION), 800_000),
        ("house/vectors", Usage(3 * MILLION), 3),
        ("house/vectors", Usage(MILLION, 5), None),
        ("house/other", Usage(1, 1), None),
        ("ollama/llama3.3", Usage(MILLION, MILLION), 0),
        ("ollama/dear", Usage(MILLION, MILLION), 2_000_000),
        ("ollama/llama3.3", Usage(None, 5), None),
        ("openai/gpt-4o", Usage(10**12, 0), None),  # nobody gave so many
        ("openai/gpt-4o", MediaUsage(100, 10, audio_tokens=50), None),  # nobody said what sound costs
    ],
)
def test_what_is_stated_counts_first(name: str, usage: Usage, cost: int | None) -> None:
    provider, _, model = name.partition("/")
    assert cost_micro_usd(provider, model, usage, AT) == cost


def test_limits_in_dollars_go_by_it() -> None:
    assert most_micro_usd("house", "vendor/llama-4:8b", MILLION, MILLION, AT) == 800_000
    assert most_micro_usd("azure", "my-gpt", MILLION, MILLION, AT) == 22_500_000  # the dearest of what may be made
    assert most_micro_usd("house", "vectors", MILLION, 1, AT) is None
    assert most_micro_usd("house", "other", 1, 1, AT) is None
    assert most_micro_usd("openai", "gpt-4o-mini", MILLION, 0, AT) == 150_000


def test_what_is_stated_anew_takes_the_place_of_all_before() -> None:
    prices.set_own(read("house/other: {input: 1}"))
    assert cost_micro_usd("house", "other", Usage(MILLION), AT) == 1_000_000
    assert cost_micro_usd("openai", "gpt-4o", Usage(MILLION, 0), AT) == 2_500_000


@pytest.mark.parametrize("text", ["", "  \n", "# nothing yet", "{}"])
def test_nothing_stated(text: str) -> None:
    assert read(text) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openai/gpt-4o", "no list"),
        ("[1, 2]", "no list"),
        ("gpt-4o: {input: 1}", "'gpt-4o'"),
        ("openai/: {input: 1}", "'openai/'"),
        ("/gpt-4o: {input: 1}", "'/gpt-4o'"),
        ("OpenAI/gpt-4o: {input: 1}", "'OpenAI/gpt-4o'"),
        ("' openai/gpt-4o': {input: 1}", "' openai/gpt-4o'"),
        ("7: {input: 1}", "7"),
        ("openai/gpt-4o: cheap", "'openai/gpt-4o'"),
        ("openai/gpt-4o: {}", "'openai/gpt-4o'"),
        ("openai/gpt-4o: {output: 1}", "no price of input for 'openai/gpt-4o'"),
        ("openai/gpt-4o: {input: 1, inputs: 1}", "'inputs'"),
        ("openai/gpt-4o: {input: -1}", "price of input"),
        ("openai/gpt-4o: {input: 1e3}", "price of input"),
        ("openai/gpt-4o: {input: 1_000}", "price of input"),
        ("openai/gpt-4o: {input: }", "price of input"),
        ("openai/gpt-4o: {input: true}", "price of input"),
        ("openai/gpt-4o: {input: 1, output: .nan}", "price of output"),
        ("openai/gpt-4o: {input: .inf}", "price of input"),
        ("openai/gpt-4o: {input: 1000000}", "price of input"),
        ("openai/gpt-4o: {input: [1]}", "price of input"),
        ("openai/gpt-4o: {input: 1}\nopenai/gpt-4o: {input: 2}", "twice"),
        ("openai/gpt-4o: {input: 1, input: 2}", "twice"),
        ("openai/gpt-4o: {input: 1", "no YAML"),
        ("a/b: !!python/object/apply:os.system ['true']", "'a/b'"),
        ("? [a]\n: {input: 1}", "KEYBEARER_PRICES"),
        ("a/b: {input: " + "9" * 5_000 + "}", "KEYBEARER_PRICES"),
        ("[" * 5_000, "KEYBEARER_PRICES"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        read(text)
    assert "KEYBEARER_PRICES" in refused.value.message
    assert said in refused.value.message
    assert len(refused.value.message) < 400
    assert "docs/prices.md" in refused.value.hint


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(SettingsInvalid):
        read(text)
