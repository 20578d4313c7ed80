"""Forms: what decides in them is found where every reader finds it, or the form is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.catalog import Catalog, Registry
from keybearer.errors import Invalid, InvalidRequest, KeybearerError, UnsupportedMediaType
from keybearer.gateway.form import Form
from keybearer.gateway.plan import compose, plan, read, route

TYPE = b"multipart/form-data; boundary=b0undary"
SOUND = bytes(range(256)) * 20
REGISTRY = Registry(Catalog.load().providers.values())


def part(head: str, content: bytes = b"whisper-1") -> bytes:
    return b"--b0undary\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def field(name: str, content: bytes = b"whisper-1") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', content)


FILE = part('Content-Disposition: form-data; name="file"; filename="a b.mp3"\r\nContent-Type: audio/mpeg', SOUND)
END = b"--b0undary--\r\n"


@pytest.mark.parametrize(
    "content_type", [TYPE, b'Multipart/Form-Data;boundary="b0undary"', b"multipart/form-data ; boundary=b0undary "]
)
@pytest.mark.parametrize(
    "model",
    [
        field("model"),
        part("content-disposition: form-data; name=model"),
        part('Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name="model"\r\nContent-Length: 9'),
        part('Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: 8bit'),
    ],
)
def test_the_model_is_found_in_the_form_however_sdks_write_it(model: bytes, content_type: bytes) -> None:
    for body in (model + FILE + END, FILE + model + END[:-2], FILE + field("language", b"de") + model + END):
        form = Form(body, content_type)
        assert form.head.model == "whisper-1"
        assert form.spliced() is body
        assert list(form.files()) == [SOUND]


def test_a_model_with_its_providers_name_is_written_anew_in_its_part_and_nothing_else_changes() -> None:
    model = part('Content-Disposition: form-data; name="model"\r\nContent-Length: 16', b"openai/whisper-1")
    body = FILE + model + field("prompt", b'name="model"\r\n\r\nopenai/whisper-1') + END
    found = route(b"POST", b"/v1/audio/transcriptions", [])
    document = read(found, body, TYPE)
    planned = plan(found, document, REGISTRY)
    sent, hides = compose(planned, body, document)
    assert (planned.model, planned.path, hides) == ("whisper-1", b"/v1/audio/transcriptions", False)
    assert sent == FILE + field("model") + field("prompt", b'name="model"\r\n\r\nopenai/whisper-1') + END
    assert Form(sent, TYPE).head.model == "whisper-1"


def test_an_image_may_be_edited_with_json_or_a_form_and_the_default_model() -> None:
    found = route(b"POST", b"/v1/images/edits", [])
    for body, content_type in ((b'{"prompt":"x"}', b"application/json"), (FILE + field("prompt", b"x") + END, TYPE)):
        document = read(found, body, content_type)
        planned = plan(found, document, REGISTRY)
        assert planned.provider is not None
        assert (planned.provider.name, planned.model) == ("openai", "")
        assert compose(planned, body, document)[0] == body
    with pytest.raises(UnsupportedMediaType):
        read(found, b"x", b"text/plain")


MALFORMED = {
    "nothing": b"",
    "no boundary": b"hello",
    "a preamble": b"hello\r\n" + FILE + field("model") + END,
    "a line break before the boundary": b"\r\n" + field("model") + END,
    "no end": FILE + field("model"),
    "a cut end": (FILE + field("model") + END)[:-4],
    "an epilogue": FILE + field("model") + END + b"more",
    "another form behind it": field("model") + END + field("model", b"gpt-5") + END,
    "the boundary within a file": field("model")
    + part('Content-Disposition: form-data; name="f"; filename="f"', b"x--b0undaryx")
    + END,
    "a line end without CR": field("model")
    + FILE.replace(b"\r\n--", b"\n--")
    + b"\n--b0undary\n"
    + field("model", b"gpt-5")
    + END,
    "white space after the boundary": field("model").replace(b"b0undary\r", b"b0undary \r") + END,
    "a longer boundary": field("model").replace(b"b0undary\r", b"b0undary2\r") + field("x") + END,
    "a part without headers": b"--b0undary\r\n\r\nwhisper-1\r\n" + END,
    "a part without an end of headers": b"--b0undary\r\nContent-Disposition: form-data\r\n" + END,
    "a folded header": part('Content-Disposition: form-data;\r\n name="model"') + END,
    "a header twice": part('Content-Disposition: form-data; name="x"\r\nContent-Disposition: form-data; name="model"') + END,
    "an unknown header": part('Content-Disposition: form-data; name="model"\r\nX-Model: y') + END,
    "no name": part("Content-Disposition: form-data") + END,
    "two names": part('Content-Disposition: form-data; name="x"; name="model"') + END,
    "a name in another charset": part("Content-Disposition: form-data; name*=utf-8''model") + END,
    "a name with an escape": part('Content-Disposition: form-data; name="mod\\el"') + END,
    "a name with a quote in the file's": part('Content-Disposition: form-data; name="x"; filename="a\\"; name="model"') + END,
    "a name with a percent sign": part('Content-Disposition: form-data; name="%6dodel"') + END,
    "a name beyond ASCII": part('Content-Disposition: form-data; name="m\u00f6del"') + END,
    "an attachment": part('Content-Disposition: attachment; name="model"') + END,
    "an encoded part": part('Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: base64') + END,
    "a wrong length": part('Content-Disposition: form-data; name="model"\r\nContent-Length: 3') + END,
    "a huge head": part('Content-Disposition: form-data; name="model"\r\nContent-Type: ' + "x" * 5000) + END,
    "too many parts": field("x") * 200 + field("model") + END,
    "a null in a head": part('Content-Disposition: form-data; name="model"; filename="a\0"') + END,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_form_that_readers_could_take_for_two_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Form(MALFORMED[name], TYPE)
    assert refused.value.hint


WRONG = {
    "the model twice": field("model") + field("model", b"gpt-5") + END,
    "the model in two cases": field("model") + field("Model", b"gpt-5") + END,
    "the model in another case": field("MODEL") + END,
    "a list of models": field("model[]") + END,
    "a file for a model": part('Content-Disposition: form-data; name="model"; filename="m"') + END,
    "a model in UTF-16": part('Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain; charset=utf-16') + END,
    "a model in JSON": part('Content-Disposition: form-data; name="model"\r\nContent-Type: application/json', b'"x"') + END,
    "a model that is no text": field("model", b"\xff\xfe") + END,
    "a long model": field("model", b"x" * 300) + END,
    "a charset": field("_charset_", b"utf-7") + field("model") + END,
    "stream twice": field("stream", b"true") + field("stream", b"false") + field("model") + END,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_decides_stands_once_and_plainly(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        Form(WRONG[name], TYPE)
    assert refused.value.fields


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/form-data; boundary=a; boundary=b0undary",
        b"multipart/form-data; boundary=b0undary; charset=utf-7",
        b"multipart/form-data; boundary*=utf-8''b0undary",
        b'multipart/form-data; boundary="b0undary',
        b'multipart/form-data; boundary="b0und\\ary"',
        b"multipart/mixed; boundary=b0undary",
        b"multipart/form-data; boundary=" + b"x" * 71,
    ],
)
def test_a_boundary_that_is_not_plain_is_refused(content_type: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        Form(field("model") + END, content_type)


def test_a_form_without_a_model_is_refused_where_there_must_be_one() -> None:
    found = route(b"POST", b"/v1/audio/transcriptions", [])
    with pytest.raises(Invalid, match="names no model"):
        plan(found, read(found, FILE + END, TYPE), REGISTRY)


def test_a_streamed_transcription_is_known_for_one() -> None:
    for value, streams in ((b"true", True), (b"True", True), (b"1", True), (b"false", False), (b"", False)):
        assert (Form(field("stream", value) + field("model") + END, TYPE).head.stream is True) is streams


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_break_the_reader(noise: bytes, at: int) -> None:
    whole = FILE[:120] + field("model") + END
    for body in (noise, whole[:at] + noise + whole[at:], TYPE + noise):
        try:
            form = Form(body, TYPE)
        except KeybearerError:
            continue
        assert form.head.model is None or json.dumps(str(form.head.model))
