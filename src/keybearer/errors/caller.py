"""What is wrong with a request, or with who sends it: 4xx."""

from __future__ import annotations

from typing import Self

from keybearer.errors.base import FieldError, KeybearerError


class Unauthenticated(KeybearerError):
    """You are not signed in."""

    code = "unauthenticated"
    status = 401
    default_hint = "Sign in, or send an access token as 'Authorization: Bearer kb_…'."


class TokenMissing(Unauthenticated):
    """No access token was sent."""

    code = "token_missing"
    default_hint = "Send your Keybearer access token (kb_…) where the SDK expects the API key."


class TokenInvalid(Unauthenticated):
    """The access token is not valid."""

    code = "token_invalid"
    default_hint = "It may be mistyped, revoked or expired. Create one under Access tokens in the console."


class CredentialsConflict(Unauthenticated):
    """Two different credentials were sent in one request."""

    code = "credentials_conflict"
    status = 400
    default_hint = "Send the Keybearer token once: as Bearer, x-api-key, x-goog-api-key or api-key."


class SignInFailed(Unauthenticated):
    """E-mail or password is wrong."""

    code = "sign_in_failed"
    default_hint = "Check both and try again."


class SessionInvalid(Unauthenticated):
    """Your session has ended."""

    code = "session_invalid"
    default_hint = "Sign in again."


class LinkInvalid(Unauthenticated):
    """This link is no longer valid."""

    code = "link_invalid"
    default_hint = "Links work once and for a limited time. Restart the server to get a new set-up link."


class Forbidden(KeybearerError):
    """You may not do this."""

    code = "forbidden"
    status = 403
    default_hint = "Ask an administrator."


class ScopeMissing(Forbidden):
    """The access token lacks the scope for this."""

    code = "scope_missing"
    default_hint = "Create a token that has it: in the console under Access tokens, 'What it may do'."


class SignInAgain(Forbidden):
    """Your sign-in is too long ago for this."""

    code = "sign_in_again"
    default_hint = "Sign out, sign in again, and repeat it within ten minutes."


class NotFetchable(Forbidden):
    """The value of this secret may be used, but not read."""

    code = "not_fetchable"
    default_hint = "Its owner can allow that: set 'fetchable' on the secret."


class CsrfFailed(Forbidden):
    """The request did not come from this site's own pages."""

    code = "csrf_failed"
    default_hint = "Reload the page and try again."


class AddressRefused(Forbidden):
    """The access token may not be used from this address."""

    code = "address_refused"
    default_hint = "Change the token's IP allowlist, or call from an allowed address."


class ProviderNotAllowed(Forbidden):
    """The access token may not use this provider."""

    code = "provider_not_allowed"
    default_hint = "Use a token whose allowed providers include it."


class ModelNotAllowed(Forbidden):
    """This model is not allowed here."""

    code = "model_not_allowed"
    default_hint = "Use an allowed model, or change the allowed models of the token or the secret."


class SharedKeyRefused(Forbidden):
    """A team's or the system's key may not be used for this."""

    code = "shared_key_refused"
    default_hint = "It could show you what others made with the same key. Add a key of your own for this provider."


class NotFound(KeybearerError):
    """There is nothing here by that name or id."""

    code = "not_found"
    status = 404
    default_hint = "Check the id; it may have been deleted, or it may not be yours."


class ProviderUnknown(NotFound):
    """No provider has this name."""

    code = "provider_unknown"
    default_hint = "List the providers at GET /api/v1/providers."


class ModelUnknown(NotFound):
    """No provider is known for this model."""

    code = "model_unknown"
    default_hint = "Name it as 'provider/model', for example 'openai/gpt-5'."


class RouteUnknown(NotFound):
    """The gateway has no such route."""

    code = "route_unknown"
    default_hint = "See the gateway's paths in the documentation; any provider is reachable under /p/{provider}/…."


class MethodNotAllowed(KeybearerError):
    """This route does not take that method."""

    code = "method_not_allowed"
    status = 405
    default_hint = "Use the method that the provider documents for this path."


class RequestTimeout(KeybearerError):
    """The request did not arrive in time."""

    code = "request_timeout"
    status = 408
    default_hint = "Send it again, faster."


class Conflict(KeybearerError):
    """Something by that name exists already."""

    code = "conflict"
    status = 409
    default_hint = "Choose another name, or change the existing one."


class TooLarge(KeybearerError):
    """The request is too large."""

    code = "too_large"
    status = 413
    default_hint = "Send less at once; the limit stands in the message."


class UnsupportedMediaType(KeybearerError):
    """This content type is not accepted here."""

    code = "unsupported_media_type"
    status = 415
    default_hint = "Send 'Content-Type: application/json'."


class Invalid(KeybearerError):
    """Some fields are wrong."""

    code = "invalid"
    status = 422
    default_hint = "Correct the fields listed."

    @classmethod
    def of(cls, field: str, message: str) -> Self:
        """The error of one wrong field; ``message`` goes on where its name ends: "is required"."""
        return cls(f"{field} {message}.", fields=(FieldError(field, message),))


class InvalidJson(Invalid):
    """The body is not valid JSON."""

    code = "invalid_json"
    status = 400
    default_hint = "Send one JSON object, encoded as UTF-8."


class InvalidRequest(Invalid):
    """The request is malformed or ambiguous."""

    code = "invalid_request"
    status = 400
    default_hint = "Send well-formed HTTP/1.1 (RFC 9112)."


class ModelAmbiguous(Invalid):
    """Several providers have a model of this name."""

    code = "model_ambiguous"
    status = 400
    default_hint = "Name it as 'provider/model'."


class KeyRefused(Invalid):
    """This cannot be a usable key."""

    code = "key_refused"
    default_hint = (
        "Check that it is the right kind of key, and copy it again from the provider's page, without spaces or line breaks."
    )


class KeyDoubtful(Invalid):
    """This does not look like a key of this provider."""

    code = "key_doubtful"
    default_hint = "Check it. If it is right, save it with save_anyway: providers change the form of their keys."


class RateLimited(KeybearerError):
    """Too many attempts."""

    code = "rate_limited"
    status = 429
    default_hint = "Wait, then try again."


class LimitReached(RateLimited):
    """A limit is reached."""

    code = "limit_reached"
    default_hint = "Wait until its time is over, or have the limit raised; see GET /api/v1/budgets."
    is_of_key = False
    """Set where it is the key's own limit: with another key the call may be made."""


class LimitExceeded(Forbidden):
    """This call alone may use more than a limit allows."""

    code = "limit_exceeded"
    default_hint = "State a smaller max_tokens, send less, or have the limit raised; see GET /api/v1/budgets."


class CallUnbounded(Forbidden):
    """A hard limit is set, and nobody knows how much this call may use."""

    code = "call_unbounded"
    default_hint = "State max_tokens, leave out what the provider charges for by itself, or have the limit made a soft one."


class PriceUnknown(Forbidden):
    """A hard budget is set, and the price of this model is not known."""

    code = "price_unknown"
    default_hint = "Call a model whose price is known, or have the budget made a soft one."


class LimitTampered(Forbidden):
    """A limit was changed outside Keybearer."""

    code = "limit_tampered"
    default_hint = "Have an administrator delete the limit and set it again."
