"""One chat, as each dialect wants it, and each dialect's answer, as a chat has it: also cut anywhere."""

from __future__ import annotations

import json
import time
from itertools import chain
from typing import Any

import pytest

from keybearer.catalog import Catalog
from keybearer.errors import Invalid, UpstreamError, UpstreamMalformed
from keybearer.gateway.chat import Chat, Delta, Message, Reply, Tool, ToolCall, asked, check, dialect_for, provider_words

PROVIDERS = Catalog.load().providers
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
CALL = ToolCall("call_1", "weather", {"place": "Basel"})
TALK = Chat(
    (
        Message("system", "Be brief."),
        Message("user", "Weather?"),
        Message("assistant", "I look.", (CALL, ToolCall("call_2", "weather", {"place": "Bern"}))),
        Message("tool", "Sunny", tool_call_id="call_1"),
        Message("tool", "Rain", tool_call_id="call_2"),
        Message("user", "And tomorrow?"),
    ),
    (Tool("weather", "The weather", SCHEMA),),
    temperature=0.5,
    max_tokens=99,
    streamed=True,
)


def body_for(name: str, chat: Chat = TALK) -> tuple[Any, dict[str, Any]]:
    provider = PROVIDERS[name]
    route, body = asked(chat, provider, dialect_for(provider), f"{name}/m")
    return route, json.loads(body)


def test_openai_gets_its_messages() -> None:
    route, body = body_for("openai")
    assert (route.operation, body["model"], body["stream"]) == ("chat.completions", "openai/m", True)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    function = {"name": "weather", "arguments": '{"place":"Basel"}'}
    assert body["messages"][2]["tool_calls"][0] == {"id": "call_1", "type": "function", "function": function}
    assert body["messages"][3] == {"role": "tool", "tool_call_id": "call_1", "content": "Sunny"}
    assert body["tools"][0]["function"] == {"name": "weather", "description": "The weather", "parameters": SCHEMA}
    assert (body["max_completion_tokens"], body["temperature"]) == (99, 0.5)
    assert body["stream_options"] == {"include_usage": True}
    assert body_for("groq")[1]["max_tokens"] == 99


def test_anthropic_gets_turns_of_two_sides() -> None:
    route, body = body_for("anthropic")
    assert (route.operation, body["system"], body["max_tokens"]) == ("messages", "Be brief.", 99)
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert [block["type"] for block in body["messages"][1]["content"]] == ["text", "tool_use", "tool_use"]
    results = body["messages"][2]["content"]
    assert results[0] == {"type": "tool_result", "tool_use_id": "call_1", "content": "Sunny"}
    assert results[2] == {"type": "text", "text": "And tomorrow?"}
    assert body["tools"] == [{"name": "weather", "description": "The weather", "input_schema": SCHEMA}]
    assert body_for("anthropic", Chat((Message("user", "Hi"),)))[1]["max_tokens"] == 4096  # it wants a limit


def test_gemini_gets_contents() -> None:
    route, body = body_for("gemini")
    assert (route.operation, route.model, route.query) == ("streamGenerateContent", "gemini/m", b"alt=sse")
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][1]["parts"][1] == {"functionCall": {"id": "call_1", "name": "weather", "args": {"place": "Basel"}}}
    answered = {"id": "call_2", "name": "weather", "response": {"result": "Rain"}}
    assert body["contents"][2]["parts"][1] == {"functionResponse": answered}
    assert body["generationConfig"] == {"temperature": 0.5, "maxOutputTokens": 99}
    assert body["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"] == SCHEMA
    assert body_for("gemini", Chat((Message("user", "Hi"),)))[0].operation == "generateContent"


def test_gemini_gets_its_signatures_back_where_they_came() -> None:
    first, second = ToolCall("call_1", "weather", {}, "c2lnbmVk"), ToolCall("call_2", "weather", {})
    chat = Chat((Message("user", "Weather?"), Message("assistant", "", (first, second))))
    calls = body_for("gemini", chat)[1]["contents"][1]["parts"]
    assert [call.get("thoughtSignature") for call in calls] == ["c2lnbmVk", None]
    assert "c2lnbmVk" not in str(body_for("openai", chat)[1]) + str(body_for("anthropic", chat)[1])
    reply = Reply("gemini")
    parts = [
        {"functionCall": {"id": "call_1", "name": "weather"}, "thoughtSignature": "c2lnbmVk"},
        {"functionCall": {"name": "x"}},
    ]
    list(reply.feed(sse({"candidates": [{"content": {"parts": parts}}]})))
    assert [call.signature for call in reply.tool_calls] == ["c2lnbmVk", ""]


def test_who_has_no_models_is_not_chatted_with() -> None:
    with pytest.raises(Invalid):
        dialect_for(PROVIDERS["slack"])


@pytest.mark.parametrize(
    "messages",
    [
        (Message("system", "x"),),
        (Message("user", ""),),
        (Message("user", "x"), Message("tool", "y", tool_call_id="call_1")),
        (Message("user", "x", (CALL,)),),
    ],
)
def test_what_makes_no_sense_is_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(Invalid):
        check(messages)
    check(TALK.messages)


def sse(*documents: dict[str, Any]) -> bytes:
    return b"".join(b"event: x\ndata: " + json.dumps(document).encode() + b"\n\n" for document in documents)


STREAMS = {
    "openai": sse(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "I "}}]},
        {"choices": [{"delta": {"content": "look."}}]},
        {
            "choices": [
                {"delta": {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}]}}
            ]
        },
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"place":'}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '"Basel"}'}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {}},
    )
    + b"data: [DONE]\n\n",
    "anthropic": sse(
        {"type": "message_start", "message": {}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "I "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "look."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "ping"},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"place":'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '"Basel"}'}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        {"type": "message_stop"},
    ),
    "gemini": sse(
        {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "I "}]}}]},
        {"candidates": [{"content": {"parts": [{"text": "look."}]}}]},
        {
            "candidates": [
                {
                    "content": {"parts": [{"functionCall": {"id": "call_1", "name": "weather", "args": {"place": "Basel"}}}]},
                    "finishReason": "STOP",
                }
            ]
        },
    ),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("dialect", STREAMS)
def test_a_stream_says_the_same_however_it_is_cut(dialect: str, size: int) -> None:
    reply, stream = Reply(dialect), STREAMS[dialect]
    pieces = [piece for at in range(0, len(stream), size) for piece in reply.feed(stream[at : at + size])]
    pieces += reply.end()
    assert pieces == [Delta("I "), Delta("look."), CALL]
    assert ("".join(reply.text), reply.tool_calls, reply.finish) == ("I look.", [CALL], "tool_calls")


def test_an_event_in_very_many_pieces_is_looked_at_once() -> None:
    """A provider of somebody's own sends one without end: looked at anew with each piece, it took the event loop for minutes."""
    reply, piece = Reply("openai"), b"x" * 512
    began = time.thread_time()
    for _ in range(4096):
        assert not list(reply.feed(piece))
    assert time.thread_time() - began < 2
    with pytest.raises(UpstreamMalformed):
        list(reply.feed(b"x" * 16 * 2**20))


LONG = "x" * 2**16
ENDLESS: dict[str, dict[str, Any]] = {
    "openai": {"choices": [{"delta": {"content": LONG}}]},
    "openai's calls": {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": LONG}}]}}]},
    "anthropic": {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": LONG}},
    "gemini": {"candidates": [{"content": {"parts": [{"text": LONG}]}}]},
    "gemini's calls": {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"x": LONG}}}]}}]},
}


CALLS: dict[str, Any] = {
    "openai's ids": lambda number: {"choices": [{"delta": {"tool_calls": [{"index": number, "id": LONG}]}}]},
    "openai's names": lambda number: {"choices": [{"delta": {"tool_calls": [{"index": number, "function": {"name": LONG}}]}}]},
    "anthropic's ids": lambda number: {
        "type": "content_block_start", "index": number, "content_block": {"type": "tool_use", "id": LONG, "name": "f"},
    },
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
def test_calls_without_end_are_given_up(what: str) -> None:
    reply = Reply(what.partition("'")[0])
    with pytest.raises(UpstreamMalformed, match="no end"):
        list(chain.from_iterable(reply.feed(sse(CALLS[what](number))) for number in range(600)))


NESTED = b"[" + b"[]," * 600_000 + b"[]]"
BRACKETS = {
    "openai": b'{"choices":[{"message":{"content":%b}}]}',
    "anthropic": b'{"content":[],"x":%b}',
    "gemini": b'{"candidates":[],"x":%b}',
}


@pytest.mark.parametrize("dialect", BRACKETS)
def test_an_answer_of_brackets_is_not_decoded(dialect: str) -> None:
    """16 MB of them took half a gigabyte, and everybody's calls waited."""
    with pytest.raises(UpstreamMalformed):
        Reply(dialect).take(BRACKETS[dialect] % NESTED)
    with pytest.raises(UpstreamMalformed):
        list(Reply(dialect).feed(b"data: " + BRACKETS[dialect] % NESTED + b"\n\n"))


def test_arguments_of_brackets_are_not_decoded() -> None:
    reply = Reply("openai")
    for text in ('{"x":[[]', *[",[]" * 100_000] * 6, "]}"):
        call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": text}}
        list(reply.feed(sse({"choices": [{"delta": {"tool_calls": [call]}}]})))
    with pytest.raises(UpstreamMalformed, match="no end"):
        list(reply.end())


@pytest.mark.parametrize("index", ["0", -1, 10**9, [0]])
def test_a_call_has_a_plain_index(index: Any) -> None:
    with pytest.raises(UpstreamMalformed):
        list(Reply("openai").feed(sse({"choices": [{"delta": {"tool_calls": [{"index": index, "id": "1"}]}}]})))


@pytest.mark.parametrize("dialect", ENDLESS)
def test_an_answer_without_end_is_given_up(dialect: str) -> None:
    """What it says is kept, to be told as a whole: a stream of a provider of somebody's own filled the memory."""
    reply, event = Reply(dialect.partition("'")[0]), sse(ENDLESS[dialect])
    with pytest.raises(UpstreamMalformed, match="no end"):
        list(chain.from_iterable(map(reply.feed, [event] * 600)))


@pytest.mark.parametrize("dialect", STREAMS)
def test_what_is_no_answer_is_malformed(dialect: str) -> None:
    for body in (
        b"",
        b"[]",
        b"{",
        b'{"choices":[],"content":[1]}',
        b'{"candidates":[{"content":7}]}',
        b'{"content":[{"type":"text"}]}',
    ):
        if dialect == "gemini" and b"candidates" not in body and body.startswith(b'{"'):
            continue  # to Gemini, an answer without candidates is one that says nothing
        with pytest.raises(UpstreamMalformed):
            Reply(dialect).take(body)
    with pytest.raises(UpstreamMalformed):
        list(Reply(dialect).feed(b"data: {nothing\n\n"))
    with pytest.raises(UpstreamError, match="Too busy"):
        list(Reply(dialect).feed(sse({"error": {"message": "Too busy"}})))


def test_arguments_that_are_no_object_are_malformed() -> None:
    message = {"tool_calls": [{"id": "1", "function": {"name": "x", "arguments": "[]"}}]}
    with pytest.raises(UpstreamMalformed):
        Reply("openai").take(json.dumps({"choices": [{"message": message}]}).encode())


def test_a_providers_words_are_cut_and_printable() -> None:
    assert provider_words(b'{"error":{"message":"No \\u001b[31m such model"}}') == "No  [31m such model"
    assert provider_words(b'[{"error":{"message":"Bad"}}]') == "Bad"
    assert provider_words(b"<html>") == provider_words(b"[]") == provider_words(b'{"error":7}') == ""
    assert len(provider_words(json.dumps({"error": "x" * 1000}).encode())) == 300
