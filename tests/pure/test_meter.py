"""What an answer consumed: every recorded answer, in pieces of any size, cut anywhere, and hostile ones."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keybearer.domain import MediaUsage, Usage
from keybearer.usage.meter import Meter, usage_of
from keybearer.usage.search import USAGE, usage_at
from keybearer.usage.skim import Skimmer

ANSWERS = Path(__file__).parent / "answers"
NOTHING = Usage()

# file → dialect, operation, usage
RECORDED: dict[str, tuple[str, str, Usage]] = {
    "openai-chat.json": ("openai", "chat.completions", Usage(1117, 146, 1024, None, 128, "gpt-5-2025-08-07")),
    "openai-chat-tools.json": ("openai", "chat.completions", Usage(82, 17, model="gpt-4o-2024-08-06")),
    "openai-chat.sse": ("openai", "chat.completions", Usage(19, 10, 0, None, 0, "gpt-4o-2024-08-06")),
    "openai-chat-hidden.sse": ("openai", "chat.completions", NOTHING),
    "openai-chat-aborted.sse": ("openai", "chat.completions", NOTHING),
    "openai-completions.json": ("openai", "completions", Usage(5, 7, model="gpt-3.5-turbo-instruct")),
    "openai-embeddings.json": ("openai", "embeddings", Usage(8, None, model="text-embedding-3-small")),
    "openai-moderations.json": ("openai", "moderations", Usage(model="omni-moderation-latest")),
    "openai-error.json": ("openai", "chat.completions", NOTHING),
    "openai-chat-audio.json": (
        "openai",
        "chat.completions",
        MediaUsage(100, 60, 0, None, 0, "gpt-4o-audio-preview-2025-06-03", audio_tokens=80, audio_output_tokens=40),
    ),
    "openai-transcription.json": ("openai", "audio.transcriptions", MediaUsage(14, 45, audio_tokens=14)),
    "openai-transcription.sse": ("openai", "audio.transcriptions", MediaUsage(14, 45, audio_tokens=14)),
    "openai-transcription-duration.json": ("openai", "audio.transcriptions", NOTHING),
    "openai-speech.sse": ("openai", "audio.speech", Usage(14, 101)),
    "openai-image.json": ("openai", "images.edits", MediaUsage(150, 4160, image_tokens=100)),
    "openai-image.sse": ("openai", "images.generations", Usage(50, 4160)),
    "openai-image-legacy.json": ("openai", "images.generations", NOTHING),
    "openai-compact.json": ("openai", "responses.compact", Usage(139, 438, 0, None, 64)),
    "gemini-audio.json": ("gemini", "generateContent", MediaUsage(132, 3, model="gemini-2.5-flash", audio_tokens=128)),
    "openai-responses.json": ("openai", "responses", Usage(36, 87, 12, 4, 64, "gpt-5-2025-08-07")),
    "openai-responses.sse": ("openai", "responses", Usage(36, 87, 12, 4, 64, "gpt-5-2025-08-07")),
    "openai-responses-incomplete.sse": ("openai", "responses", Usage(36, 87, 12, 4, 64, "gpt-5-2025-08-07")),
    "openai-responses-aborted.sse": ("openai", "responses", NOTHING),
    "xai-chat.json": ("openai", "chat.completions", Usage(32, 103, 6, None, 94, "grok-4.3", 0.0037756)),
    "xai-chat.sse": ("openai", "chat.completions", Usage(32, 103, 6, None, 94, "grok-4.3", 0.0037756)),
    "openrouter-chat.json": ("openai", "chat.completions", Usage(194, 2, 0, 100, 0, "meta-llama/llama-4-maverick", 0.00095)),
    "openrouter-chat.sse": ("openai", "chat.completions", Usage(194, 2, 0, 100, 0, "meta-llama/llama-4-maverick", 0.00095)),
    # With the account's own key at another provider: the fee, and what that provider charges.
    "openrouter-byok.json": ("openai", "chat.completions", Usage(194, 2, 0, None, 0, "meta-llama/llama-4-maverick", 0.75)),
    "openrouter-byok.sse": ("openai", "chat.completions", Usage(194, 2, 0, None, 0, "meta-llama/llama-4-maverick", 0.75)),
    "openrouter-reasoning.json": (
        "openai",
        "chat.completions",
        Usage(1194, 72, 1024, 0, 48, "anthropic/claude-sonnet-4.5", 0.0031482),
    ),
    "openrouter-reasoning.sse": (
        "openai",
        "chat.completions",
        Usage(1194, 72, 1024, 0, 48, "anthropic/claude-sonnet-4.5", 0.0031482),
    ),
    "azure-chat.json": ("openai", "chat.completions", Usage(1310, 74, 1280, None, 64, "o4-mini-2025-04-16")),
    "azure-chat.sse": ("openai", "chat.completions", Usage(1310, 74, 1280, None, 64, "o4-mini-2025-04-16")),
    "cohere-compatible.json": ("openai", "chat.completions", Usage(211, 4, 176, model="command-a-03-2025")),
    "cohere-compatible.sse": ("openai", "chat.completions", Usage(211, 4, 176, model="command-a-03-2025")),
    "deepseek-chat.json": ("openai", "chat.completions", Usage(100, 30, 64, None, 20, "deepseek-reasoner")),
    "deepseek-chat.sse": ("openai", "chat.completions", Usage(100, 30, 64, None, 20, "deepseek-reasoner")),
    "groq-chat.json": ("openai", "chat.completions", Usage(48, 52, 32, None, 40, "openai/gpt-oss-20b")),
    "groq-chat.sse": ("openai", "chat.completions", Usage(48, 52, 32, None, 40, "openai/gpt-oss-20b")),
    "voyage-embeddings.json": ("openai", "embeddings", Usage(10, None, model="voyage-4")),
    "voyage-rerank.json": ("openai", "rerank", Usage(26, None, model="rerank-2.5")),
    "openai-embeddings-base64.json": ("openai", "embeddings", Usage(9, None, model="text-embedding-3-large")),
    "gemini-batch-embed.json": ("gemini", "batchEmbedContents", Usage(11, None)),
    "gemini-compatible.json": ("openai", "chat.completions", Usage(10, 53, None, None, 50, "gemini-2.5-flash")),
    "anthropic-messages.json": ("anthropic", "messages", Usage(3607, 503, 1000, 512, 80, "claude-sonnet-5-5", None, 56)),
    "anthropic-messages.sse": ("anthropic", "messages", Usage(1025, 15, 1000, 0, None, "claude-sonnet-5-5")),
    "anthropic-messages-search.sse": ("anthropic", "messages", Usage(4038, 510, 1000, 7, 33, "claude-sonnet-5-5")),
    "anthropic-messages-aborted.sse": ("anthropic", "messages", Usage(1025, 1, 1000, 0, None, "claude-sonnet-5-5")),
    "anthropic-messages-error.sse": ("anthropic", "messages", Usage(1025, 1, 1000, 0, None, "claude-sonnet-5-5")),
    "anthropic-count.json": ("anthropic", "messages.count_tokens", NOTHING),
    "anthropic-error.json": ("anthropic", "messages", NOTHING),
    "gemini-generate.json": ("gemini", "generateContent", Usage(272, 153, 200, None, 73, "gemini-3.5-flash")),
    "gemini-blocked.json": ("gemini", "generateContent", Usage(12, 0, model="gemini-3.5-flash")),
    "gemini-stream.sse": ("gemini", "streamGenerateContent", Usage(9, 32, None, None, 21, "gemini-3.5-flash")),
    "gemini-stream-aborted.sse": ("gemini", "streamGenerateContent", Usage(9, 29, None, None, 21, "gemini-3.5-flash")),
    "gemini-stream.json": ("gemini", "streamGenerateContent", Usage(9, 32, None, None, 21, "gemini-3.5-flash")),
    "gemini-stream-aborted.json": ("gemini", "streamGenerateContent", Usage(9, 29, None, None, 21, "gemini-3.5-flash")),
    "gemini-embed.json": ("gemini", "embedContent", Usage(6, None)),
    "gemini-count.json": ("gemini", "countTokens", NOTHING),
    "gemini-error.json": ("gemini", "streamGenerateContent", NOTHING),
}


UNMETERED = {"openai-file.json", "openai-batch.json", "anthropic-batch.json"}
"""Descriptions of what is kept: the gateway reads no usage from them, as they are asked for again and again."""

TOKENS = st.none() | st.integers(-1, 10**13) | st.integers(0, 20) | st.floats(0, 9) | st.booleans() | st.text(max_size=2)
DETAILS = st.none() | st.integers(0, 3) | st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens", "x"]), TOKENS)
COUNTS = st.fixed_dictionaries(
    {"prompt_tokens": TOKENS, "completion_tokens": TOKENS, "total_tokens": TOKENS},
    optional={
        "prompt_tokens_details": DETAILS,
        "completion_tokens_details": DETAILS,
        "input_tokens": TOKENS,
        "cost": TOKENS,
        "cost_in_usd_ticks": TOKENS,
        "prompt_cache_hit_tokens": TOKENS,
    },
)


@given(COUNTS | st.none(), st.text(max_size=3) | st.none() | st.integers())
@example({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}, "m")
def test_the_quick_look_at_a_chat_sees_what_the_close_one_sees(counts: dict[str, Any] | None, model: Any) -> None:
    answer = json.dumps(
        {"id": "c", "model": model, "usage": counts, "choices": [{"message": {"content": '"usage": {'}}]}
    ).encode()
    quick = usage_of("openai", "chat.completions", answer)
    assert quick == usage_of("openai", "completions", answer)


def _pieces(answer: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(answer) + 1) for cut in cuts} | {0, len(answer)})
    return [answer[start:end] for start, end in pairwise(places)]


def _metered(dialect: str, operation: str, pieces: list[bytes], *, streamed: bool) -> Usage:
    meter = Meter(dialect, operation, streamed)
    for piece in pieces:
        meter.feed(piece)
    return meter.finish()


def _is_streamed(name: str) -> bool:
    return "stream" in name or name.endswith(".sse")


def test_every_recorded_answer_is_read() -> None:
    assert set(RECORDED) | UNMETERED == {path.name for path in ANSWERS.iterdir()} - {"README.md", ".gitattributes"}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("size", [1, 2, 7, 64, 1_000_000])
def test_the_meter_says_what_the_answer_says(name: str, size: int) -> None:
    dialect, operation, usage = RECORDED[name]
    answer = (ANSWERS / name).read_bytes()
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    assert _metered(dialect, operation, pieces, streamed=_is_streamed(name)) == usage


@given(st.sampled_from(sorted(RECORDED)), st.lists(st.integers(0, 10_000), max_size=12))
def test_pieces_make_no_difference(name: str, cuts: list[int]) -> None:
    dialect, operation, usage = RECORDED[name]
    pieces = _pieces((ANSWERS / name).read_bytes(), cuts)
    assert _metered(dialect, operation, pieces, streamed=_is_streamed(name)) == usage


@pytest.mark.parametrize("name", [name for name in RECORDED if name.endswith(".json") and not _is_streamed(name)])
def test_an_answer_is_told_by_itself_not_by_what_was_asked(name: str) -> None:
    """An error, or a whole answer, may come where a stream was asked for."""
    dialect, operation, usage = RECORDED[name]
    answer = (ANSWERS / name).read_bytes()
    assert _metered(dialect, operation, [b"", b" \r\n", answer[:5], answer[5:]], streamed=True) == usage


@given(st.sampled_from(sorted(RECORDED)), st.integers(0, 3_000), st.lists(st.integers(0, 3_000), max_size=4))
def test_an_answer_cut_anywhere_is_counted_as_far_as_it_came(name: str, end: int, cuts: list[int]) -> None:
    dialect, operation, usage = RECORDED[name]
    answer = (ANSWERS / name).read_bytes()[:end]
    found = _metered(dialect, operation, _pieces(answer, cuts), streamed=_is_streamed(name))
    assert found == _metered(dialect, operation, [answer], streamed=_is_streamed(name))
    for said, whole in ((found.input_tokens, usage.input_tokens), (found.output_tokens, usage.output_tokens)):
        assert said is None or whole is None or said <= whole


# --- large answers ----------------------------------------------------------------------------------------------------


def _large(name: str) -> bytes:
    """A recorded answer with content that is too large to keep, full of what looks like structure."""
    trap = '\\"usage\\":{\\"prompt_tokens\\":5},\\\\' * 33_000
    text = (ANSWERS / name).read_text(encoding="utf-8")
    return text.replace('"Once.', '"Once.' + trap).replace('"Keys are borne.', '"Keys are borne.' + trap).encode()


@pytest.mark.parametrize(
    "name",
    ["openai-chat.json", "openai-responses.json", "openai-responses.sse", "anthropic-messages.json", "gemini-generate.json"],
)
@pytest.mark.parametrize("size", [977, 65_536, 10_000_000])
def test_large_answers_are_skimmed(name: str, size: int) -> None:
    dialect, operation, usage = RECORDED[name]
    answer = _large(name)
    assert len(answer) > 1_100_000
    meter = Meter(dialect, operation, _is_streamed(name))
    for at in range(0, len(answer), size):
        meter.feed(answer[at : at + size])
        kept = sum(map(len, meter._kept)) + len(meter._held)
        assert kept <= 1024 * 1024 + size
    assert meter.finish() == usage


@pytest.mark.parametrize("size", [4_093, 10_000_000])
@pytest.mark.parametrize("whole", [True, False])
def test_a_large_image_in_a_stream(size: int, whole: bool) -> None:  # noqa: FBT001
    image = {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "iVBORw0K" * 100_000}}]}}]}
    usage = {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1290}, "modelVersion": "gemini-x"}
    event = b"data: " + json.dumps(image | usage).encode() + b"\r\n\r\n"
    answer = b'data: {"usageMetadata":{"promptTokenCount":3}}\r\n\r\n' + (event if whole else event[:-4])
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    assert _metered("gemini", "streamGenerateContent", pieces, streamed=True) == Usage(3, 1290, model="gemini-x")
    # What follows counts on.
    if whole:
        pieces.append(b'data: {"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1291}}\r\n\r\n')
        assert _metered("gemini", "streamGenerateContent", pieces, streamed=True).output_tokens == 1291


def test_many_small_pieces_of_a_whole_answer_do_not_pile_up() -> None:
    meter = Meter("openai", "chat.completions", streamed=False)
    meter.feed(b'{"x":[')
    for _ in range(100_000):
        meter.feed(b"1,")
    meter.feed(b'1],"usage":{"prompt_tokens":1,"completion_tokens":2}}')
    assert len(meter._kept) < 5_000
    assert meter.finish() == Usage(1, 2)


# --- where events end -------------------------------------------------------------------------------------------------


def test_an_event_of_our_own_may_follow_between_two_events_only() -> None:
    meter = Meter("openai", "chat.completions", streamed=True)
    assert not meter.is_between_events
    for piece, between in ((b'data: {"a"', False), (b":1}\n", False), (b"\n", True), (b"data: [DONE]\n\n", True), (b"d", False)):
        meter.feed(piece)
        assert meter.is_between_events is between


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_all_line_ends_of_event_streams(end: str) -> None:
    lines = ['data: {"usage": {"prompt_tokens":4,', 'data: "completion_tokens":2}}']
    answer = (f"event: x{end[: len(end) // 2]}" + end[: len(end) // 2].join(lines) + end + f"data: [DONE]{end}").encode()
    for size in (1, 3, 1_000):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert _metered("openai", "chat.completions", pieces, streamed=True) == Usage(4, 2)


# --- hostile answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"prompt_tokens": -1, "completion_tokens": 2}, Usage(None, 2)),
        ({"prompt_tokens": 10**13, "completion_tokens": 2}, Usage(None, 2)),
        ({"prompt_tokens": True, "completion_tokens": "2"}, NOTHING),
        ({"prompt_tokens": 3.0, "completion_tokens": 2.5}, Usage(3, None)),
        ({"prompt_tokens": [1], "prompt_tokens_details": [1], "completion_tokens_details": "x"}, NOTHING),
        ({"prompt_tokens": 1, "completion_tokens": 1, "cost": "free"}, Usage(1, 1)),
        ({"prompt_tokens": 1, "completion_tokens": 1, "cost": -1}, Usage(1, 1)),
        ({"prompt_tokens": 1, "completion_tokens": 1, "cost": 0}, Usage(1, 1, cost_usd=0.0)),
        ({"prompt_tokens": 1, "completion_tokens": 1, "cost": 1_000_000}, Usage(1, 1, cost_usd=1e6)),
        ({"prompt_tokens": 1, "completion_tokens": 1, "cost": 1_000_001}, Usage(1, 1)),  # sums would overflow
        ({}, NOTHING),
        ([], NOTHING),
        ("x", NOTHING),
        (None, NOTHING),
    ],
)
def test_nonsense_is_not_counted(said: Any, usage: Usage) -> None:
    answer = json.dumps({"model": 5, "usage": said}).encode()
    assert _metered("openai", "chat.completions", [answer], streamed=False) == usage


def test_a_models_name_is_cut_and_must_be_text() -> None:
    answer = json.dumps({"model": "x" * 10_000, "usage": {"prompt_tokens": 1}}).encode()
    assert _metered("openai", "chat.completions", [answer], streamed=False).model == "x" * 200


_HOSTILE = st.lists(
    st.sampled_from(
        [
            b"data: ",
            b"{",
            b"}",
            b"[",
            b"]",
            b'"usage":{',
            b'"usageMetadata"',
            b'"',
            b"\\",
            b":",
            b",",
            b"\n\n",
            b"\r\n\r\n",
            b"\n",
            b"\x00",
            b"\xff",
            b'{"message":',
            b'{"response":5',
            b"9" * 400,
            b"1e999",
            b"[" * 2_000,
        ]
    )
    | st.binary(max_size=8),
    max_size=20,
)


@given(st.sampled_from(["openai", "anthropic", "gemini"]), _HOSTILE, st.booleans())
@example("openai", [b'data: {"usage":{', b"[" * 100_000, b"\n\n"], True)
@example("openai", [b'{"usage":', b"[" * 1_300_000], False)
def test_nothing_an_upstream_sends_makes_the_meter_fail(dialect: str, pieces: list[bytes], streamed: bool) -> None:  # noqa: FBT001
    found = _metered(dialect, "messages", pieces, streamed=streamed)
    assert found == _metered(dialect, "messages", [b"".join(pieces)], streamed=streamed)


_SPELLINGS = (b'"usage":', b'"usage": ')
_ODD = (b'"usage" :', b'"usage"\t:\t', b'"usage":  ')
_EVENTS = st.lists(st.sampled_from([b"null", b"{}", b'"usage"', b'{"prompt_tokens":1}', b"5"]), max_size=6)


@given(_EVENTS, st.sampled_from([_SPELLINGS, *((odd,) for odd in _ODD)]), st.randoms(use_true_random=False))
@example([b"null", b"{}"], _SPELLINGS, Random(1))
def test_usage_is_found_where_a_slower_search_finds_it(values: list[bytes], spellings: tuple[bytes, ...], chosen: Random) -> None:
    """Both usual spellings may stand in one stream: who passes events on writes the last one anew."""
    piece = b"".join(b'data: {"a":1,%b%b}\n\n' % (chosen.choice(spellings), value) for value in values)
    found = USAGE.search(piece)
    assert usage_at(piece) == (-1 if found is None else found.start())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "model", "message", "a", ""]) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(st.sampled_from(["usage", "model", "usageMetadata", "response", "a", "\\", '"']), _JSON, max_size=5),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 500), max_size=8),
)
def test_skimming_finds_what_decoding_finds(document: dict[str, Any], ascii_only: bool, spaced: bool, cuts: list[int]) -> None:  # noqa: FBT001
    text = json.dumps(document, ensure_ascii=ascii_only, indent=1 if spaced else None).encode("utf-8", "surrogatepass")
    skimmer = Skimmer()
    for piece in _pieces(text, cuts):
        skimmer.feed(piece)
    wrapped = document.get("response")
    entered = wrapped if isinstance(wrapped, dict) else {}
    for key in ("usage", "model", "usageMetadata"):
        possible = [source[key] for source in (document, entered) if key in source]
        found = skimmer.found.get(key.encode())
        assert (found is None) is (not possible)
        assert found is None or json.loads(found) in possible


def test_structure_without_end_is_given_up() -> None:
    for piece in (b"[" * 50_000, b"[[[]]]," * 10_000, b'"a":1,' * 10_000):
        skimmer = Skimmer()
        skimmer.feed(b'{"usage":{"prompt_tokens":1},"x":' if piece[:1] != b'"' else b'{"usage":{"prompt_tokens":1},')
        for _ in range(16):
            skimmer.feed(piece)
        assert skimmer._steps > 300_000
        assert skimmer.found[b"usage"] == b'{"prompt_tokens":1}'


def test_a_fee_and_what_another_provider_charges_are_bounded_together() -> None:
    for fee, charged, cost in ((0.25, 0.5, 0.75), (0.25, None, None), (10**6, 1, None), (0, 10**6, 10**6), (0.25, -1, None)):
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "cost": fee, "is_byok": True}
        answer = json.dumps({"model": "m", "usage": usage | {"cost_details": {"upstream_inference_cost": charged}}}).encode()
        assert usage_of("openai", "chat.completions", answer).cost_usd == cost
