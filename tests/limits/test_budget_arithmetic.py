"""Windows, accounts and bounds: values in, values out."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.domain import Budget, BudgetKind, BudgetSubject, Usage
from keybearer.errors import CallUnbounded, KeybearerError, LimitExceeded, LimitReached, LimitTampered, PriceUnknown
from keybearer.usage import bounds, prices
from keybearer.usage.limits import Account, Most, charged, take, window

AT = datetime(2026, 2, 28, 23, 59, 30, tzinfo=UTC)
BUDGET = {
    "id": UUID(int=1), "owner_id": UUID(int=2), "subject": BudgetSubject.USER, "subject_id": str(UUID(int=2)), "by_admin": False,
    "is_hard": True, "created_by": UUID(int=2), "created_at": AT, "updated_at": AT,
}  # fmt: skip


def account(kind: BudgetKind, amount: int, **more: Any) -> Account:
    return Account(Budget(**{**BUDGET, "kind": kind, "amount": amount, **more}), AT.timestamp())


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [
        (BudgetKind.USD_DAY, (2026, 2, 28), (2026, 3, 1)),
        (BudgetKind.USD_MONTH, (2026, 2, 1), (2026, 3, 1)),
        (BudgetKind.REQUESTS_MINUTE, (2026, 2, 28, 23, 59), (2026, 3, 1)),
        (BudgetKind.TOKENS_MINUTE, (2026, 2, 28, 23, 59), (2026, 3, 1)),
    ],
)
def test_windows_are_the_calendars(kind: BudgetKind, start: tuple[int, ...], end: tuple[int, ...]) -> None:
    expected = tuple(datetime(*when, tzinfo=UTC).timestamp() for when in (start, end))  # type: ignore[arg-type,misc]
    assert window(kind, AT.timestamp()) == expected
    assert window(kind, expected[0]) == expected
    assert window(kind, expected[1])[0] == expected[1]


def test_december_ends_with_the_year() -> None:
    at = datetime(2026, 12, 31, 12, tzinfo=UTC).timestamp()
    assert window(BudgetKind.USD_MONTH, at)[1] == datetime(2027, 1, 1, tzinfo=UTC).timestamp()


def test_all_limits_are_taken_from_or_none() -> None:
    wide, narrow = account(BudgetKind.TOKENS_MINUTE, 100), account(BudgetKind.REQUESTS_MINUTE, 1)
    hold = take([wide, narrow], Most(40, None), AT.timestamp())
    assert (wide.counted, narrow.counted) == (40, 1)
    with pytest.raises(LimitReached) as refused:
        take([wide, narrow], Most(40, None), AT.timestamp())
    assert refused.value.retry_after == 30
    assert (wide.counted, narrow.counted) == (40, 1)
    hold.settle("ok", 200, Most(7, None))
    assert (wide.counted, wide.used, narrow.counted) == (7, 7, 1)


def test_what_is_released_was_never_taken() -> None:
    one = account(BudgetKind.USD_DAY, 100)
    take([one], Most(5, 90), AT.timestamp()).release()
    assert one.counted == 0


def test_a_call_that_ends_in_the_next_window_counts_in_its_own() -> None:
    one = account(BudgetKind.TOKENS_MINUTE, 100)
    before = take([one], Most(90, None), AT.timestamp())
    after = take([one], Most(80, None), AT.timestamp() + 40)
    before.settle("ok", 200, Most(50, None))
    assert one.counted == 80
    after.settle("ok", 200, Most(60, None))
    assert one.counted == 60


def test_who_writes_another_kind_into_the_database_frees_nothing() -> None:
    one = account(BudgetKind.REQUESTS_MINUTE, 2)
    holds = [take([one], Most(1000, None), AT.timestamp()) for _ in range(2)]
    budget = one.budget
    one.hold_to(replace(budget, kind=BudgetKind.TOKENS_MINUTE, is_tampered=True))
    holds[0].settle("ok", 200, Most(10, None))
    one.hold_to(budget)
    holds[1].settle("ok", 200, Most(10, None))
    assert (one.counted, one.used) == (2, 2)
    with pytest.raises(LimitReached):
        take([one], Most(1, None), AT.timestamp())


def test_a_clock_that_goes_back_gives_nothing_back() -> None:
    one = account(BudgetKind.REQUESTS_MINUTE, 1)
    take([one], Most(None, None), AT.timestamp())
    with pytest.raises(LimitReached):
        take([one], Most(None, None), AT.timestamp() - 3600)


@pytest.mark.parametrize(
    ("error", "kind", "most", "more"),
    [
        (LimitExceeded, BudgetKind.USD_DAY, Most(1, 101), {}),
        (CallUnbounded, BudgetKind.USD_DAY, Most(None, None), {}),
        (PriceUnknown, BudgetKind.USD_DAY, Most(10, None), {}),
        (CallUnbounded, BudgetKind.TOKENS_MINUTE, Most(None, None), {}),
        (LimitTampered, BudgetKind.REQUESTS_MINUTE, Most(None, None), {"is_tampered": True, "is_hard": False}),
    ],
)
def test_in_doubt_a_hard_limit_refuses(error: type[KeybearerError], kind: BudgetKind, most: Most, more: dict[str, Any]) -> None:
    one = account(kind, 100, **more)
    with pytest.raises(error) as refused:
        take([one], most, AT.timestamp(), price_known=most.tokens is None)
    assert type(refused.value) is error
    assert refused.value.hint
    assert one.counted == 0


def test_a_soft_limit_only_shows() -> None:
    one = account(BudgetKind.USD_DAY, 0, is_hard=False)
    hold = take([one], Most(None, None), AT.timestamp())
    hold.settle("ok", 200, Most(5, 7))
    assert one.counted == 7


@pytest.mark.parametrize(
    ("outcome", "status", "used", "expected"),
    [
        ("ok", 200, 5, 5), ("ok", 200, 500, 500), ("ok", 200, None, 100), ("refused", 503, None, 0), ("upstream_error", 429, None, 0),
        ("upstream_error", 502, None, 0), ("upstream_error", 200, 5, 100), ("aborted", 200, 5, 100), ("aborted", 200, 500, 500),
        ("aborted", 499, None, 100), ("failed", 503, None, 0),
    ],
)  # fmt: skip
def test_what_is_not_known_to_have_been_less_counts_in_full(outcome: str, status: int, used: int | None, expected: int) -> None:
    assert charged(outcome, status, used, 100) == expected


SAY = [{"role": "user", "content": "Hello"}]
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}]


@pytest.mark.parametrize(
    ("operation", "body", "made", "answers"),
    [
        ("chat.completions", {"messages": SAY, "max_tokens": 9}, 9, 1),
        ("chat.completions", {"messages": SAY, "max_tokens": 9, "max_completion_tokens": 20, "n": 3}, 20, 3),
        ("chat.completions", {"messages": SAY}, None, 1),
        ("completions", {"prompt": ["a", "b"], "max_tokens": 5, "n": 2, "best_of": 4}, 5, 8),
        ("responses", {"input": "Hello", "max_output_tokens": 7}, 7, 1),
        ("messages", {"messages": SAY, "system": [{"type": "text", "text": "x"}], "max_tokens": 3}, 3, 1),
        ("generateContent", {"contents": [{"parts": [{"text": "a"}]}], "generationConfig": {"maxOutputTokens": 4}}, 4, 1),
        ("streamGenerateContent", {"contents": [], "generation_config": {"max_output_tokens": 4, "candidate_count": 2}}, 4, 2),
        ("embeddings", {"input": ["a", "b"]}, 0, 1),
        ("batchEmbedContents", {"requests": [{"content": {"parts": [{"text": "a"}]}}]}, 0, 1),
    ],
)
def test_text_is_bounded_by_its_size(operation: str, body: dict[str, Any], made: int | None, answers: int) -> None:
    raw = json.dumps(body).encode()
    assert bounds.asked(operation, b"POST", raw) == (len(raw), made, answers, True, True)


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("chat.completions", {"messages": PICTURE, "max_tokens": 9}),
        ("responses", {"input": "Hello", "previous_response_id": "resp_1", "max_output_tokens": 9}),
        ("responses", {"input": [{"type": "item_reference", "id": "x"}], "max_output_tokens": 9}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "document"}]}], "max_tokens": 9}),
        ("generateContent", {"contents": {"parts": {"fileData": {}}}, "generationConfig": {"maxOutputTokens": 9}}),
        ("generateContent", {"cachedContent": "cachedContents/1", "generationConfig": {"maxOutputTokens": 9}}),
        ("embedContent", {"content": {"parts": [{"inline_data": {}}]}}),
    ],
)
def test_what_is_no_text_is_bounded_by_the_model_alone(operation: str, body: dict[str, Any]) -> None:
    asked = bounds.asked(operation, b"POST", json.dumps(body).encode())
    assert asked.is_bounded
    assert asked.given is None


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("chat.completions", b'{"messages":[],"max_tokens":1,"max_tokens":100000}'),
        ("chat.completions", b'{"messages":[],"max_tokens":1,"Max_Tokens":100000}'),
        ("chat.completions", b'{"messages":[],"max_tokens":1,"max_t\\u006fkens":100000}'),
        ("chat.completions", b'{"messages":[],"max_tokens":-5}'),
        ("chat.completions", b'{"messages":[],"max_tokens":"5"}'),
        ("chat.completions", b'{"messages":[],"max_tokens":1e999}'),
        ("chat.completions", b'{"messages":[],"max_tokens":5,"n":1e12}'),
        ("chat.completions", b'{"messages":["x"],"max_tokens":5}'),
        ("chat.completions", b'{"messages":[],"max_tokens":5,"web_search_options":{"a":1}}'),
        ("chat.completions", b"[" * 100_000),
        ("chat.completions", b'{"messages":[],"max_tokens":5,"models":["a/dear"]}'),
        ("chat.completions", b'{"messages":[],"max_tokens":5,"route":"fallback"}'),
        ("chat.completions", b'{"messages":[],"max_tokens":5,"plugins":[{"id":"web"}]}'),
        ("messages", b'{"messages":[],"max_tokens":5,"fallbacks":[{"model":"dear"}]}'),
        ("embeddings", b'{"input":[' + b"[]," * 300_000 + b"1]}"),
        ("responses", b'{"input":"a","max_output_tokens":5,"tools":[{"type":"web_search"}]}'),
        ("messages", b'{"messages":[],"max_tokens":5,"mcp_servers":[{}]}'),
        ("generateContent", b'{"contents":[],"tools":[{"googleSearch":{}}]}'),
        ("generateContent", b'{"generationConfig":{"maxOutputTokens":1},"generation_config":{"maxOutputTokens":99}}'),
        ("images.generations", b"{}"), ("http", b"{}"), ("batches.create", b"{}"), ("audio.speech", b"{}"),
    ],
)  # fmt: skip
def test_what_is_not_understood_has_no_bound(operation: str, body: bytes) -> None:
    assert not bounds.asked(operation, b"POST", body).is_bounded


@pytest.mark.parametrize(
    ("tier", "is_listed"),
    [
        (b'"service_tier":"default"', True),
        (b'"service_tier":null', True),
        (b'"service_tier":"flex","speed":"standard"', True),
        (b'"service_tier":"priority"', False),
        (b'"service_tier":"fast"', False),
        (b'"service_tier":["priority"]', False),
        (b'"speed":"fast"', False),
        (b'"inference_geo":"us"', False),
    ],
)
def test_a_tier_that_costs_more_has_no_listed_price(tier: bytes, is_listed: bool) -> None:  # noqa: FBT001
    found = bounds.asked("chat.completions", b"POST", b'{"messages":[],"max_tokens":5,' + tier + b"}")
    assert (found.is_bounded, found.is_listed) == (True, is_listed)
    assert not bounds.asked("chat.completions", b"POST", b'{"messages":[],"max_tokens":5,"Service_Tier":"fast"}').is_bounded


TEXTS: st.SearchStrategy[Any] = (
    st.text(max_size=6)
    | st.none()
    | st.lists(st.builds(dict, type=st.sampled_from(["text", "tool_use", "image_url"])), max_size=2)
)
NUMBERS = st.sampled_from([0, 1, 3, 10_000, 10_001, 2.5, 4.0, -1, True, None, "5", 1e30])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(st.builds(dict, role=st.just("user"), content=TEXTS), max_size=2) | st.none(),
    "system": TEXTS, "max_tokens": NUMBERS, "max_completion_tokens": NUMBERS, "n": NUMBERS, "model": st.just("m"),
    "tools": st.lists(st.builds(dict, type=st.sampled_from(["function", "web_search"])), max_size=2) | st.none(),
    "stream": st.booleans(), "audio": st.sampled_from([None, {}, {"voice": "a"}]), "service_tier": st.sampled_from([None, "priority"]),
}  # fmt: skip


@given(operation=st.sampled_from(["chat.completions", "messages"]), body=st.fixed_dictionaries({}, optional=FIELDS))
def test_the_short_way_of_plain_chats_says_what_the_long_one_says(operation: str, body: dict[str, Any]) -> None:
    """Keys that nobody knows change nothing but the size, and are read the long way."""
    short, long = (
        bounds.asked(operation, b"POST", json.dumps({**body, **more}).encode()) for more in ({"a": 1}, {"a": 1, "b": 1})
    )
    plain = bounds.asked(operation, b"POST", json.dumps(body).encode())
    size = len(json.dumps({**body, "a": 1})) - len(json.dumps(body))
    assert (short.made, short.answers, short.is_bounded) == (long.made, long.answers, long.is_bounded)
    assert (plain.made, plain.is_bounded, plain.is_listed) == (short.made, short.is_bounded, short.is_listed)
    assert plain.answers == short.answers or (operation == "messages" and "n" in body)  # which Anthropic does not have
    assert plain.given == (None if short.given is None else short.given - size)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[],"max_tokens":100000,"max_tokens":1}',
        b'{"messages":[],"max_tokens":100000,"max_t\\u006fkens":1}',
        b'{"messages":[],"max_tokens":5,"n":100,"n":1}',
        b'{"messages":[],"max_tokens":5,"\\u006e":100,"n":1}',
    ],
)
def test_a_plain_chat_that_says_twice_how_much_has_no_bound(body: bytes) -> None:
    assert not bounds.asked("chat.completions", b"POST", body).is_bounded


@pytest.mark.parametrize("last", [b'"max_tokens":null', b'"n":null'])
def test_nothing_said_last_takes_back_nothing(last: bytes) -> None:
    asked = bounds.asked("chat.completions", b"POST", b'{"messages":[],"max_tokens":5,"n":7,' + last + b"}")
    assert not asked.is_bounded or (asked.made is None and asked.answers == 7)


def test_a_field_of_another_dialect_bounds_nothing() -> None:
    asked = bounds.asked("messages", b"POST", b'{"messages":[],"max_completion_tokens":0}')
    assert asked.made is None
    assert bounds.asked("chat.completions", b"POST", b'{"messages":[],"max_completion_tokens":7}').made == 7


def test_looking_costs_nothing() -> None:
    assert bounds.asked("files.list", b"GET", b"") == (0, 0, 1, True, True)
    assert bounds.asked("countTokens", b"POST", b"{}") == (0, 0, 1, True, True)
    assert not bounds.asked("http", b"GET", b"").is_bounded


def test_the_dearest_rates_are_reserved() -> None:
    prices.load()
    at = time.time()
    usage = Usage(input_tokens=1000, output_tokens=500, cache_write_tokens=1000)
    most = prices.most_micro_usd("anthropic", "claude-sonnet-4-5", 1000, 500, at)
    real = prices.cost_micro_usd("anthropic", "claude-sonnet-4-5", usage, at)
    assert most is not None
    assert real is not None
    assert most >= real > 0
    assert prices.most_micro_usd("anthropic", "kbtest-unknown", 1000, 500, at) is None
    assert prices.context_window("openai", "gpt-4o-mini") == 128_000
    assert prices.context_window("acme", "gpt-4o-mini") is None
