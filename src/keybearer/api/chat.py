"""``POST /api/chat``: one chat with any model, in one shape (MISSION G13), by session or token.

It is a gateway call from inside (``gateway.inside``): whose key serves, what is on record and what it costs is as for every call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.types import Receive, Scope, Send

from keybearer.access import policy
from keybearer.api.authentication import CurrentCaller, CurrentServices, bearer_token
from keybearer.catalog import Provider
from keybearer.domain import SYSTEM_OWNER_ID, Caller, Grant, OwnerKind, Usage
from keybearer.domain import Scope as TokenScope
from keybearer.errors import (
    Forbidden,
    InvalidRequest,
    KeybearerError,
    KeyFailed,
    ModelAmbiguous,
    RateLimited,
    UpstreamError,
)
from keybearer.gateway import chat
from keybearer.gateway.chat import Chat, Delta, Message, Reply, Tool, ToolCall
from keybearer.gateway.health import stated_wait
from keybearer.gateway.inside import Admit, Inside
from keybearer.gateway.plane import Plane, plane_in
from keybearer.gateway.ready import Admission
from keybearer.services import Services
from keybearer.usage import prices
from keybearer.usage.meter import Meter, usage_of
from keybearer.vault.models import ModelView

router = APIRouter(prefix="/api", tags=["chat"])
T = TypeVar("T")

_FIRST_ERROR = 400
_ANSWER_BYTES: Final = 16 * 2**20
_ERROR_BYTES: Final = 64 * 1024
_LABELS = ("x-keybearer-workflow", "x-keybearer-node", "x-keybearer-user")


class Camel(BaseModel):
    """Names in camelCase, as hosts of chats have them; nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", populate_by_name=False, serialize_by_alias=True)


class CalledTool(Camel):
    """The model wants a tool called; its result comes back as a message of the role `tool`."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    arguments: dict[str, Any]
    signature: Annotated[
        str, Field(max_length=1_000_000, description="The provider's own, to be sent back with the call as it is; empty: none.")
    ] = ""


class ChatMessage(Camel):
    """One message. `toolCalls` are the assistant's; `toolCallId` says which of them a `tool` message answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: Annotated[list[CalledTool], Field(max_length=128)] = []
    tool_call_id: Annotated[str, Field(max_length=200)] = ""


class ChatTool(Camel):
    """A function that the model may have called."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=10_000)] = ""
    parameters: Annotated[dict[str, Any], Field(description="A JSON schema.")] = {"type": "object", "properties": {}}


class ChatRequest(Camel):
    """What is asked."""

    model_id: Annotated[str, Field(min_length=1, max_length=300, description="A registered model's id, or `provider/model`.")]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000)]
    tools: Annotated[list[ChatTool], Field(max_length=128)] = []
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    stream: bool = False


class ChatUsage(Camel):
    """Tokens; `null`: the provider did not say."""

    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None


class ChatReceipt(Camel):
    """Whose key served, and which."""

    model_config = ConfigDict(populate_by_name=True)

    request_id: str
    key_source: str
    secret_id: str
    provider: str
    model: str


class ChatSaid(Camel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatAnswer(Camel):
    """An answer, whichever provider gave it. `cost` is in US dollars; `null`: unknown."""

    message: ChatSaid
    tool_calls: list[CalledTool]
    finish_reason: Literal["stop", "length", "tool_calls", "filter", "other"]
    usage: ChatUsage
    cost: float | None
    receipt: ChatReceipt


_STREAM = (
    "With `stream`, server-sent events: `delta` (`{text}`), `tool_call` (`{id, name, arguments, signature}`, whole), then one of `done` "
    "(a ChatAnswer) and `error` (a Problem, without type and title)."
)


@router.post(
    "/chat",
    response_model=ChatAnswer,
    responses={200: {"description": f"The answer. {_STREAM}", "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def have_chat(body: ChatRequest, request: Request, caller: CurrentCaller, services: CurrentServices) -> Any:
    """Chat with a model, of whichever provider, for the caller: by session, or by token with the scope `gateway:use`.

    The use is on record before the key leaves; a client that leaves ends the provider's call.
    """
    asked = Chat(
        tuple(_message(message) for message in body.messages),
        tuple(Tool(tool.name, tool.description, tool.parameters) for tool in body.tools),
        body.temperature,
        body.max_tokens,
        body.stream,
    )
    chat.check(asked.messages)
    plane = plane_in(request.scope.get("state", {}))
    call = await _begin(plane, services, request, caller, (body.model_id, asked))
    is_handed_on = False
    try:
        if not body.stream:
            answer = await _watched(request, _whole(call))
            return JSONResponse(answer.model_dump(by_alias=True), headers={"cache-control": "no-store"})
        await _watched(request, _refused_or_begun(call))
        is_handed_on = True
        return _Stream(call)
    finally:
        if not is_handed_on:
            call.inside.close()


@dataclass(frozen=True, slots=True)
class _Call:
    """A call under way."""

    inside: Inside
    dialect: str
    operation: str
    model: str
    """As the provider names it."""


async def _begin(plane: Plane, services: Services, request: Request, caller: Caller, wanted: tuple[str, Chat]) -> _Call:
    """Send the call to the provider of the model that is wanted."""
    name, asked = wanted
    model: ModelView | None = None
    with suppress(ValueError):
        model = await services.models.get(caller, UUID(name))
        name = f"{model.provider}/{model.name}"
    provider, found = (await services.providers.registry(caller.user_id)).locate(name)
    if model is not None and not _is_meant(model, provider):
        raise ModelAmbiguous(
            f"Another model named '{name}' counts before the one of that id.",
            hint="A person's own models count before everybody's, and those before a team's: "
            "register one of them under another provider, or delete it.",
        )
    dialect = chat.dialect_for(provider)
    route, sent = chat.asked(asked, provider, dialect, f"{provider.name}/{found}")
    said = [(label.encode(), request.headers[label].encode("latin-1")) for label in _LABELS if label in request.headers]
    admit: Admit | None = None
    token = bearer_token(request)
    if token is None:
        admit = partial(_admission, plane, services, caller)
    else:
        said.append((b"Authorization", b"Bearer " + token.encode("latin-1")))
    call = _Call(Inside(plane, caller.client), dialect, route.operation, found)
    call.inside.begin(route, sent, said, admit)
    return call


def _is_meant(model: ModelView, provider: Provider) -> bool:
    """Whether a call by its name is a call of this very model: with its address, its key, its defaults, and so its payer."""
    if provider.registered is not None:
        return provider.registered.id == model.id
    steers = model.base_url or model.auth_style or model.has_own_key or model.parameters
    is_theirs = model.owner_kind is OwnerKind.USER or provider.owner_id in {None, SYSTEM_OWNER_ID, model.team_id}
    return is_theirs and not steers


async def _admission(plane: Plane, services: Services, caller: Caller) -> Admission:
    """Of a person who is signed in."""
    if caller.session_id is None:
        raise Forbidden

    async def read() -> Grant:
        user = await services.users.get(caller.user_id)
        if not user.is_active:
            raise Forbidden
        scopes = policy.scopes_of(user.role) & {TokenScope.GATEWAY_USE}
        return Grant("", user.id, user.role, frozenset(scopes), None, None, (), None)

    return await plane.credentials.admit(caller.session_id, caller.user_id, read)


async def _watched(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result, as long as the client waits for it. Raises ``InvalidRequest``, which nobody hears, where it has left."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        task.cancel()
        gone.cancel()
    raise InvalidRequest("The client has left.")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """Events of a call, which ends with them: also where not one was asked for."""

    def __init__(self, call: _Call) -> None:
        super().__init__(_events(call), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.inside.close()


async def _refused_or_begun(call: _Call) -> None:
    """Wait for the answer's head. Raises what our own refusal, or the provider's error, comes to."""
    status = await call.inside.answered()
    if status >= _FIRST_ERROR:
        raise provider_error(status, call.inside.headers, await call.inside.whole(_ERROR_BYTES))


async def _whole(call: _Call) -> ChatAnswer:
    await _refused_or_begun(call)
    body = await call.inside.whole(_ANSWER_BYTES)
    reply = Reply(call.dialect)
    reply.take(body)
    return _answer(call, reply, usage_of(call.dialect, call.operation, body))


async def _events(call: _Call) -> AsyncIterator[bytes]:
    """Our events, as the provider's come. If nobody takes them any more, the provider's call ends."""
    reply, meter = Reply(call.dialect), Meter(call.dialect, call.operation, True)
    try:
        async for data in call.inside.body():
            meter.feed(data)
            for piece in reply.feed(data):
                yield _event_of(piece)
        for made in reply.end():
            yield _event_of(made)
        yield _event("done", _answer(call, reply, meter.finish()).model_dump(by_alias=True))
    except KeybearerError as error:
        detail = {"status": error.status, "detail": error.message, "code": error.code, "hint": error.hint}
        yield _event("error", detail)


def _event_of(piece: Delta | ToolCall) -> bytes:
    if isinstance(piece, Delta):
        return _event("delta", {"text": piece.text})
    called = {"id": piece.id, "name": piece.name, "arguments": piece.arguments, "signature": piece.signature}
    return _event("tool_call", called)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


def _answer(call: _Call, reply: Reply, usage: Usage) -> ChatAnswer:
    headers = call.inside.headers
    provider = headers.get("x-keybearer-provider", "")
    cost = prices.cost_micro_usd(provider, call.model, usage, time.time())
    return ChatAnswer.model_construct(
        message=ChatSaid(content="".join(reply.text)),
        tool_calls=[
            CalledTool.model_construct(id=made.id, name=made.name, arguments=made.arguments, signature=made.signature)
            for made in reply.tool_calls
        ],
        finish_reason=reply.finish,
        usage=ChatUsage.model_construct(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        ),
        cost=None if cost is None else cost / 1_000_000,
        receipt=ChatReceipt(
            request_id=headers.get("x-keybearer-request-id", ""),
            key_source=headers.get("x-keybearer-key-source", ""),
            secret_id=headers.get("x-keybearer-secret-id", ""),
            provider=provider,
            model=usage.model or call.model,
        ),
    )


def provider_error(status: int, headers: dict[str, str], body: bytes) -> KeybearerError:
    """What a provider's error is to a caller of ours; its words are scrubbed of the key already."""
    words = chat.provider_words(body)
    said = f"The provider answered {status}" + (f": {words}" if words else ".")
    if status in {401, 402, 403}:
        return KeyFailed(said)
    if status == 429:  # noqa: PLR2004  # RFC 6585
        sent = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        return RateLimited(said, hint="The limit is the provider's.", retry_after=stated_wait(sent, datetime.now(UTC)))
    if status in {400, 404, 409, 413, 415, 422}:
        return InvalidRequest(said, hint="Change what is sent, or choose another model.")
    return UpstreamError(said)


def _message(message: ChatMessage) -> Message:
    calls = tuple(ToolCall(call.id, call.name, call.arguments, call.signature) for call in message.tool_calls)
    return Message(message.role, message.content, calls, message.tool_call_id)
