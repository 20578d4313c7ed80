"""Commands for providers and models, over HTTP: ``keybearer provider`` and ``keybearer model``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from keybearer.cli.output import AsJson, print_json, print_rows, say
from keybearer.cli.use import client, read_value
from keybearer.errors import FieldError, Invalid

providers = typer.Typer(help="Providers: predefined ones and your own.", no_args_is_help=True)
models = typer.Typer(help="Registered models: their own addresses and keys, aliases, defaults.", no_args_is_help=True)

PROVIDER_COLUMNS = ("name", "display_name", "category", "base_url", "has_api_key", "is_predefined")
MODEL_COLUMNS = ("id", "provider", "name", "kind", "aliases", "has_own_key", "base_url", "owner_kind")

ProviderName = Annotated[str, typer.Argument(help="A provider's name, for example openai.")]
ModelId = Annotated[str, typer.Argument(help="The model's id; 'keybearer model list' shows it.")]
WithKey = Annotated[bool, typer.Option("--key", help="Read its own key from standard input.")]
SaveAnyway = Annotated[bool, typer.Option("--save-anyway", help="Save the key although its format looks wrong.")]
BaseUrl = Annotated[str, typer.Option(help="Its own address; the provider's if left out.")]
Alias = Annotated[list[str] | None, typer.Option(help="A further name; may be repeated.")]
Parameter = Annotated[
    list[str] | None, typer.Option("--parameter", help="NAME=VALUE, for example region=us-east-1; may be repeated.")
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(providers, name="provider")
    app.add_typer(models, name="model")


@providers.command("list")
def provider_list(
    *,
    with_keys: Annotated[bool, typer.Option("--with-keys", help="Only those you have a key for.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the providers and whether you have a usable key for each."""
    with client() as api:
        rows = api.request("GET", "/providers/with-keys" if with_keys else "/providers")
    print_rows(rows, PROVIDER_COLUMNS, as_json=as_json)


@providers.command("add")
def provider_add(
    name: ProviderName,
    base_url: Annotated[str, typer.Argument(help="Its address, as its SDKs' base_url is written.")],
    *,
    display_name: Annotated[str, typer.Option(help="As people read it.")] = "",
    model: Annotated[list[str] | None, typer.Option(help="A model it has; may be repeated.")] = None,
    auth_style: Annotated[str, typer.Option(help="bearer, header or none.")] = "bearer",
    auth_header: Annotated[str, typer.Option(help="The header that takes the key, with --auth-style header.")] = "",
    key: WithKey = False,
    as_json: AsJson = False,
) -> None:
    """Add a custom provider: an OpenAI-compatible API."""
    draft: dict[str, Any] = {"name": name, "base_url": base_url, "display_name": display_name, "models": model or []}
    draft |= {"auth_style": auth_style, "auth_header": auth_header}
    if key:
        draft["api_key"] = read_value()
    with client() as api:
        made = api.request("POST", "/providers", json=draft)
    if as_json:
        print_json(made)
    else:
        say(f"Added {made['name']} at {made['base_url']}.")


@providers.command("set-key")
def provider_set_key(name: ProviderName, *, parameter: Parameter = None, save_anyway: SaveAnyway = False) -> None:
    """Store your own key for a provider, read from standard input; it becomes the secret named 'default'."""
    change: dict[str, Any] = {"api_key": read_value(), "save_anyway": save_anyway}
    if parameter:
        change["parameters"] = _pairs(parameter)
    with client() as api:
        api.request("PUT", f"/providers/{name}", json=change)
    say("Stored.")


@providers.command("test")
def provider_test(name: ProviderName, *, as_json: AsJson = False) -> None:
    """Test the connection with the key that a call would use; exits 1 unless it works."""
    with client() as api:
        _show_test(api.request("POST", f"/providers/{name}/test"), as_json=as_json)


@providers.command("delete")
def provider_delete(name: ProviderName) -> None:
    """Delete a custom provider with its models and their own keys; other secrets for it stay."""
    with client() as api:
        api.request("DELETE", f"/providers/{name}")
    say("Deleted.")


@models.command("list")
def model_list(
    *, provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None, as_json: AsJson = False
) -> None:
    """List the registered models that your calls can name."""
    with client() as api:
        print_rows(api.pages("/models", query={"provider": provider}), MODEL_COLUMNS, as_json=as_json)


@models.command("templates")
def model_templates(*, as_json: AsJson = False) -> None:
    """List the well-known models."""
    with client() as api:
        print_rows(
            api.request("GET", "/models/templates")["items"], ("provider", "name", "display_name", "kind"), as_json=as_json
        )


@models.command("add")
def model_add(
    provider: ProviderName,
    name: Annotated[str, typer.Argument(help="The model's name, as the provider writes it.")],
    *,
    display_name: Annotated[str, typer.Option(help="As people read it.")] = "",
    base_url: BaseUrl = "",
    auth_style: Annotated[str | None, typer.Option(help="bearer, header or none; the provider's way if left out.")] = None,
    alias: Alias = None,
    key: WithKey = False,
    save_anyway: SaveAnyway = False,
    as_json: AsJson = False,
) -> None:
    """Register a model; without a key of its own, calls use what resolution finds."""
    draft: dict[str, Any] = {"provider": provider, "name": name, "display_name": display_name, "aliases": alias or []}
    draft |= {"base_url": base_url or None, "auth_style": auth_style, "save_anyway": save_anyway}
    if key:
        draft["api_key"] = read_value()
    with client() as api:
        made = api.request("POST", "/models", json=draft)
    if as_json:
        print_json(made)
    else:
        say(f"Registered {made['provider']}/{made['name']} as {made['id']}.")


@models.command("set-key")
def model_set_key(
    model_id: ModelId,
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Take its own key off the model, and delete it.")] = False,
    save_anyway: SaveAnyway = False,
) -> None:
    """Give a model a key of its own, read from standard input."""
    with client() as api:
        api.request(
            "PATCH", f"/models/{model_id}", json={"api_key": None if remove else read_value(), "save_anyway": save_anyway}
        )
    say("Removed." if remove else "Stored.")


@models.command("test")
def model_test(model_id: ModelId, *, as_json: AsJson = False) -> None:
    """Test a model with the key that a call would use; exits 1 unless it works."""
    with client() as api:
        _show_test(api.request("POST", f"/models/{model_id}/test"), as_json=as_json)


@models.command("delete")
def model_delete(model_id: ModelId) -> None:
    """Delete a model with its own key."""
    with client() as api:
        api.request("DELETE", f"/models/{model_id}")
    say("Deleted.")


def _show_test(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        say(f"{result['status']}: {result['message']} ({result['latency_ms']:.0f} ms)")
    if result["status"] != "ok":
        sys.exit(1)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts)
    if not all(pairs.values()):
        raise Invalid("A parameter is written NAME=VALUE.", fields=(FieldError("parameters", "are NAME=VALUE"),))
    return pairs
