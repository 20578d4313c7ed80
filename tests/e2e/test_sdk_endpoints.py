"""The official SDKs at every endpoint beside chat, with nothing changed but base URL and token."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2 as httpx
import openai
import pytest
from google import genai
from google.genai import types
from tests.e2e.conftest import KEYS, World
from tests.e2e.test_sdks import assert_borne

from keybearer.mock.media import PICTURE, SOUND
from keybearer.mock.objects import CONTENT

LINES = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-4o-mini","messages":[]}}\n'


@pytest.fixture(autouse=True)
def _forget(world: World) -> None:
    world.provider.forget()


@pytest.fixture
def client(world: World) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{world.server.url}/v1", api_key=world.token, max_retries=0) as found:
        yield found


def targets(world: World) -> list[str]:
    return [f"{request['method']} {request['target']}" for request in world.provider.requests()]


def test_images(world: World, client: openai.OpenAI) -> None:
    drawn = client.images.generate(model="gpt-image-1", prompt="a key")
    assert drawn.data
    assert drawn.data[0].b64_json
    assert drawn.usage is not None
    streamed = list(client.images.generate(model="gpt-image-1", prompt="a key", stream=True))
    assert streamed[-1].type == "image_generation.completed"
    edited = client.images.edit(model="openai/gpt-image-1", image=("key.png", PICTURE), prompt="a golden key")
    assert edited.data
    with pytest.deprecated_call():
        varied = client.images.create_variation(image=("key.png", PICTURE))
    assert varied.data
    assert_borne(world, "openai", "authorization", f"Bearer {KEYS['openai']}")
    assert "openai/gpt-image-1" not in world.provider.requests()[2]["body"]


def test_audio(world: World, client: openai.OpenAI) -> None:
    assert client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hello").content == SOUND
    with client.audio.speech.with_streaming_response.create(model="gpt-4o-mini-tts", voice="alloy", input="x") as streamed:
        assert b"".join(streamed.iter_bytes()) == SOUND
    sound = io.BytesIO(SOUND * 100)
    sound.name = "key.mp3"
    heard = client.audio.transcriptions.create(model="openai/whisper-1", file=sound, timestamp_granularities=["word"])
    assert heard.text
    with pytest.deprecated_call():
        translated = client.audio.translations.create(model="whisper-1", file=('schl\u00fcssel "1".mp3', SOUND))
    assert translated.text
    assert_borne(world, "openai", "authorization", f"Bearer {KEYS['openai']}")
    assert targets(world)[2:] == ["POST /openai/v1/audio/transcriptions", "POST /openai/v1/audio/translations"]


def test_files_and_batches(world: World, client: openai.OpenAI) -> None:
    file = client.files.create(file=("calls.jsonl", LINES), purpose="batch")
    assert file.filename == "calls.jsonl"
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.content(file.id).content == CONTENT
    assert [found.id for found in client.files.list()]
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert client.batches.retrieve(batch.id).output_file_id
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert list(client.batches.list())
    assert client.files.delete(file.id).deleted
    assert_borne(world, "openai", "authorization", f"Bearer {KEYS['openai']}")


def test_stored_responses(world: World, client: openai.OpenAI) -> None:
    made = client.responses.create(model="gpt-4o-mini", input="hello")
    assert client.responses.retrieve(made.id).id == made.id
    assert list(client.responses.input_items.list(made.id))
    assert client.responses.cancel(made.id).id == made.id
    client.responses.delete(made.id)
    assert client.responses.input_tokens.count(model="gpt-4o-mini", input="hello").input_tokens > 0
    follow = client.responses.create(model="gpt-4o-mini", input="more", previous_response_id=made.id)
    assert follow.id
    with client.responses.stream(model="gpt-4o-mini", input="hello") as stream:
        assert [event.type for event in stream][-1] == "response.completed"
    assert_borne(world, "openai", "authorization", f"Bearer {KEYS['openai']}")


def test_message_batches(world: World) -> None:
    with anthropic.Anthropic(base_url=f"{world.server.url}/anthropic", api_key=world.token, max_retries=0) as client:
        params: Any = {"model": "claude-sonnet-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        made = client.messages.batches.create(requests=[{"custom_id": "1", "params": params}])
        assert client.messages.batches.retrieve(made.id).id == made.id
        assert list(client.messages.batches.list())
        assert client.messages.batches.cancel(made.id).id == made.id
        assert client.messages.batches.delete(made.id).type == "message_batch_deleted"
        beta = client.beta.messages.count_tokens(
            model="claude-sonnet-4-5", messages=params["messages"], betas=["token-counting-2024-11-01"]
        )
        assert beta.input_tokens > 0
    request = world.provider.requests()[-1]
    assert request["target"].startswith("/anthropic/v1/messages/count_tokens")
    assert "token-counting-2024-11-01" in request["headers"]["anthropic-beta"]


def test_azure(world: World) -> None:
    world.admin.call("PUT", "/providers/azure", json={"base_url": world.provider.base_url("azure")})
    world.admin.add_key("azure", "kbtest-azure-0123456789abcdef012345")
    time.sleep(1)  # until the server has heard of the address
    with openai.AzureOpenAI(
        azure_endpoint=world.server.url, api_key=world.token, api_version="2024-10-21", max_retries=0
    ) as client:
        answer = client.chat.completions.create(model="my-gpt", messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content
        chunks = list(client.chat.completions.create(model="my-gpt", messages=[{"role": "user", "content": "hi"}], stream=True))
        assert chunks
        assert client.embeddings.create(model="my-vectors", input="x").data
    requests = world.provider.requests()
    assert requests[0]["target"] == "/azure/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    assert {request["headers"]["api-key"] for request in requests} == {"kbtest-azure-0123456789abcdef012345"}


def test_gemini_files(world: World) -> None:
    """An upload begins here, with the key; its bytes go where the provider says, and nothing of ours goes with them."""
    options = types.HttpOptions(base_url=f"{world.server.url}/gemini")
    with genai.Client(api_key=world.token, http_options=options) as client:
        made = client.files.upload(file=io.BytesIO(LINES), config=types.UploadFileConfig(mime_type="text/plain"))
        assert made.name
        assert made.size_bytes == len(LINES)
        assert client.files.get(name=made.name).name == made.name
        assert [file.name for file in client.files.list()]
        client.files.delete(name=made.name)
    begun, sent, *others = world.provider.requests()
    assert begun["target"] == "/gemini/upload/v1/files"
    assert begun["headers"]["x-goog-upload-command"] == "start"
    assert sent["body"].encode() == LINES
    assert "kb_" not in str(sent)
    assert KEYS["gemini"] not in str(sent)
    assert [f"{request['method']} {request['target']}" for request in others] == [
        f"GET /gemini/v1/{made.name}",
        "GET /gemini/v1/files",
        f"DELETE /gemini/v1/{made.name}",
    ]
    for request in (begun, *others):
        assert request["headers"]["x-goog-api-key"] == KEYS["gemini"]
        assert "kb_" not in str(request)


def test_any_path_of_a_provider(world: World) -> None:
    with openai.OpenAI(base_url=f"{world.server.url}/p/openai/v1", api_key=world.token, max_retries=0) as client:
        assert client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}]).id
        assert list(client.files.list())
    assert targets(world) == ["POST /openai/v1/chat/completions", "GET /openai/v1/files"]


def test_agents_find_somebody_at_the_bases(world: World) -> None:
    for path in ("/", "/anthropic", "/anthropic/", "/v1", "/openai/v1", "/gemini"):
        found = httpx.head(f"{world.server.url}{path}", follow_redirects=False)
        assert found.status_code < 400, (path, found.status_code)
    assert not world.provider.requests()
