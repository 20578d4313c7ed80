"""What a team's or the system's key may be used for: one user never sees what another made with it."""

from __future__ import annotations

import pytest

from keybearer.catalog import Catalog, Sharing
from keybearer.catalog.load import parse
from keybearer.catalog.sharing import call_of

CATALOG = Catalog.load()


def of(name: str, dialect: str) -> Sharing:
    return CATALOG.get(name).apis[dialect].sharing


CALLS = [
    ("openai", "openai", "POST", "/chat/completions", "free", "", ""),
    ("openai", "openai", "GET", "/models", "free", "", ""),
    ("openai", "openai", "GET", "/models/ft:gpt-4o:acme::abc", "free", "", ""),
    ("openai", "openai", "POST", "/images/edits", "free", "", ""),
    ("openai", "openai", "POST", "/files", "creates", "file", ""),
    ("openai", "openai", "GET", "/files", "refused", "", ""),
    ("openai", "openai", "GET", "/files/file-abc", "uses", "file", "file-abc"),
    ("openai", "openai", "GET", "/files/file-abc/content", "uses", "file", "file-abc"),
    ("openai", "openai", "DELETE", "/files/file-abc", "uses", "file", "file-abc"),
    ("openai", "openai", "GET", "/files/file-abc/", "refused", "", ""),
    ("openai", "openai", "GET", "/files/a/b", "refused", "", ""),
    ("openai", "openai", "POST", "/batches", "creates", "batch", ""),
    ("openai", "openai", "GET", "/batches", "refused", "", ""),
    ("openai", "openai", "POST", "/batches/batch_1/cancel", "uses", "batch", "batch_1"),
    ("openai", "openai", "POST", "/responses", "creates", "response", ""),
    ("openai", "openai", "GET", "/responses/resp_1", "uses", "response", "resp_1"),
    ("openai", "openai", "GET", "/chat/completions", "refused", "", ""),
    ("openai", "openai", "GET", "/vector_stores", "refused", "", ""),
    ("openai", "openai", "GET", "/organization/usage/completions", "refused", "", ""),
    ("anthropic", "anthropic", "POST", "/messages", "free", "", ""),
    ("anthropic", "anthropic", "POST", "/messages/batches", "creates", "batch", ""),
    ("anthropic", "anthropic", "GET", "/messages/batches", "refused", "", ""),
    ("anthropic", "anthropic", "GET", "/messages/batches/msgbatch_1/results", "uses", "batch", "msgbatch_1"),
    ("anthropic", "anthropic", "GET", "/files", "refused", "", ""),
    ("gemini", "gemini", "POST", "/v1beta/models/gemini-2.5-pro:streamGenerateContent", "free", "", ""),
    ("gemini", "gemini", "GET", "/v1beta/files", "refused", "", ""),
    ("gemini", "gemini", "GET", "/v1beta/files/abc", "uses", "file", "abc"),
    ("gemini", "gemini", "POST", "/v1beta/models/../files", "refused", "", ""),
    ("gemini", "gemini", "POST", "/v1beta/tunedModels/x:generateContent", "refused", "", ""),
    ("openrouter", "openai", "GET", "/key", "refused", "", ""),
    ("openrouter", "openai", "GET", "/credits", "refused", "", ""),
    ("slack", "http", "POST", "/chat.postMessage", "free", "", ""),
    ("slack", "http", "POST", "/chatXpostMessage", "refused", "", ""),
    ("slack", "http", "GET", "/conversations.history", "refused", "", ""),
    ("google_drive", "http", "GET", "/drive/v3/files", "refused", "", ""),
    ("pinecone", "http", "GET", "/indexes", "refused", "", ""),
    ("reddit", "http", "GET", "/api/v1/me", "refused", "", ""),
]


@pytest.mark.parametrize(("name", "dialect", "method", "path", "rule", "kind", "object_id"), CALLS)
def test_a_call_with_a_shared_key(name: str, dialect: str, method: str, path: str, rule: str, kind: str, object_id: str) -> None:
    verdict = of(name, dialect).judge(method, path)
    assert (verdict.rule, verdict.kind, verdict.object_id) == (rule, kind, object_id)


def test_each_api_of_models_lets_its_calls_through_and_no_list_of_objects() -> None:
    for provider in CATALOG.providers.values():
        for dialect, api in provider.apis.items():
            if dialect == "openai":
                assert api.sharing.judge("POST", "/chat/completions").rule == "free", provider.name
                assert api.sharing.judge("GET", "/files").rule == "refused", provider.name
            if dialect == "anthropic":
                assert api.sharing.judge("POST", "/messages").rule == "free", provider.name


def test_bodies_name_objects_too() -> None:
    references = of("openai", "openai").references
    assert references["previous_response_id"] == "response"
    assert references["file_id"] == "file"
    assert references["vector_store_ids"] == "vector_store"  # nobody's: no call makes them


def test_what_the_catalogue_does_not_know_is_refused() -> None:
    assert Sharing().judge("POST", "/chat/completions").rule == "refused"


@pytest.mark.parametrize("text", ["", "GET", "get /files", "GET files", "GET /a?b", "GET /a/*/b", "GET /(.*)", "GET /{id}"])
def test_a_rule_is_written_in_one_way(text: str) -> None:
    with pytest.raises(ValueError, match="not a call"):
        call_of(text)


def test_a_rule_of_an_object_names_it_once() -> None:
    for text in ("GET /files", "GET /{id}/{id}"):
        with pytest.raises(ValueError, match="not a call"):
            call_of(text, names_object=True)
    with pytest.raises(ValueError, match="references"):
        parse("sharing: {x: {references: {file_id: file}}}\nproviders: {}")
