"""Every error Keybearer raises on purpose, in one tree.

Each class's docstring is its default message; each has a stable ``code`` (part of the API), an HTTP
``status`` and a ``hint`` that says what to do next. Third-party errors are translated to these at one
seam each. Messages never hold a secret, a token or a value that the caller sent as one.

KeybearerError
├── Unauthenticated (401)
│   ├── TokenMissing            token_missing
│   ├── TokenInvalid            token_invalid        (unknown, revoked, expired: one answer for all)
│   ├── CredentialsConflict     credentials_conflict (two different tokens in one request; 400)
│   ├── SignInFailed            sign_in_failed
│   ├── SessionInvalid          session_invalid
│   └── LinkInvalid             link_invalid         (set-up link used, expired or unknown)
├── Forbidden (403)
│   ├── ScopeMissing            scope_missing
│   ├── SignInAgain             sign_in_again        (the sign-in is too long ago for this)
│   ├── NotFetchable            not_fetchable        (the secret's value may be used, never read)
│   ├── CsrfFailed              csrf_failed
│   ├── AddressRefused          address_refused      (token's IP allowlist)
│   ├── ProviderNotAllowed      provider_not_allowed (token's allowed providers)
│   ├── ModelNotAllowed         model_not_allowed    (token's or secret's allowed models)
│   ├── LimitExceeded           limit_exceeded       (one call alone may use more than a limit allows)
│   ├── CallUnbounded           call_unbounded       (a limit is hard, and nobody knows what the call may use)
│   ├── PriceUnknown            price_unknown        (a USD budget is hard, and the model's price is not known)
│   ├── LimitTampered           limit_tampered       (a limit's row was changed outside Keybearer)
│   └── SharedKeyRefused        shared_key_refused   (a key of several people may not serve this call)
├── NotFound (404)              not_found
│   ├── ProviderUnknown         provider_unknown
│   ├── ModelUnknown            model_unknown
│   └── RouteUnknown            route_unknown
├── MethodNotAllowed (405)      method_not_allowed
├── RequestTimeout (408)        request_timeout
├── Conflict (409)              conflict
├── TooLarge (413)              too_large
├── UnsupportedMediaType (415)  unsupported_media_type
├── Invalid (422)               invalid              (with the list of fields)
│   ├── InvalidJson (400)       invalid_json
│   ├── InvalidRequest (400)    invalid_request      (HTTP that is malformed or ambiguous)
│   ├── ModelAmbiguous (400)    model_ambiguous
│   ├── KeyRefused              key_refused          (surely wrong: admin key, control characters)
│   └── KeyDoubtful             key_doubtful         (looks wrong; may be saved anyway)
├── RateLimited (429)           rate_limited
│   └── LimitReached            limit_reached        (a budget or limit; until its window ends)
├── KeyUnusable (403)           resolution stopped at an own key
│   ├── KeyMissing (404)        key_missing
│   ├── KeyInactive             key_inactive
│   ├── KeyExpired              key_expired
│   ├── KeyFailed               key_failed           (the provider refused it)
│   ├── KeyUnreadable           key_unreadable       (does not open: enter it again)
│   ├── ReferenceDenied         reference_denied     (the store of an external secret refuses, or nobody allows it any more)
│   ├── ReferenceMissing        reference_missing    (the store has no such secret)
│   └── ReferenceWrong          reference_wrong      (what it has there is no usable value)
├── EgressRefused (403)         egress_refused       (host not bound to the key, or address denied)
├── UpstreamError (502)
│   ├── UpstreamUnreachable     upstream_unreachable
│   │   └── UpstreamUnresolved  upstream_unresolved  (its name has no address)
│   ├── UpstreamTimeout (504)   upstream_timeout
│   ├── UpstreamTls             upstream_tls
│   ├── UpstreamGone            upstream_gone        (a webhook's address is no more: 410)
│   └── UpstreamMalformed       upstream_malformed
├── Unavailable (503)
│   ├── TrustLost               database_unreachable (revocations can no longer be heard)
│   ├── JournalFailed           journal_failed       (a use could not be recorded, so nothing was sent)
│   ├── Frozen                  frozen
│   ├── Overloaded              overloaded
│   ├── LimitsUnshared          limits_unshared      (another process counts the limits that the call is held to)
│   ├── LimitsUnreachable       limits_unreachable   (the Valkey that counts them does not answer)
│   ├── RotationBlocked         rotation_blocked     (waits for other processes)
│   ├── ReferenceUnreachable    reference_unreachable (the store of an external secret does not answer)
│   └── KmsUnreachable          kms_unreachable      (timed out or does not answer)
└── OperatorError (500)         start-up and command-line errors
    ├── SettingsInvalid         settings_invalid
    ├── RootKeyError            root_key             (missing, wrong or unreadable)
    │   └── KmsDenied           kms_denied           (key unknown, disabled or not allowed)
    ├── DatabaseError           database
    ├── AuditBroken             audit_broken         (verification failed)
    ├── BackupError             backup               (cannot be made, read or restored)
    └── EnvelopeError           envelope             (opaque: nothing about why)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: ``field`` is its dotted path in the request, ``message`` what is wrong with it."""

    field: str
    message: str


class KeybearerError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    default_hint: ClassVar[str] = ""
    is_recorded = False
    """Set on a refusal that is on record already."""

    def __init__(
        self,
        message: str | None = None,
        *,
        hint: str | None = None,
        fields: tuple[FieldError, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        """``message`` and ``hint`` default to the class's own; ``retry_after`` is in seconds."""
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.hint = self.default_hint if hint is None else hint
        self.fields = fields
        self.retry_after = retry_after
        super().__init__(self.message)


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


class KeyUnusable(KeybearerError):
    """Your key for this provider cannot be used."""

    code = "key_unusable"
    status = 403
    default_hint = "Look at it in the Secrets Vault."


class KeyMissing(KeyUnusable):
    """You have no key for this provider."""

    code = "key_missing"
    status = 404
    default_hint = "Add one in the Secrets Vault."


class KeyInactive(KeyUnusable):
    """Your key for this provider is switched off."""

    code = "key_inactive"
    default_hint = "Activate it in the Secrets Vault, or add another."


class KeyExpired(KeyUnusable):
    """Your key for this provider has expired."""

    code = "key_expired"
    default_hint = "Enter a new value, or change its expiry in the Secrets Vault."


class KeyFailed(KeyUnusable):
    """The provider refused your key."""

    code = "key_failed"
    default_hint = "Test it in the Secrets Vault and enter a new value."


class KeyUnreadable(KeyUnusable):
    """Your stored key cannot be read: enter it again."""

    code = "key_unreadable"
    default_hint = "Enter it again in the Secrets Vault; docs/troubleshooting.md lists the causes."


class ReferenceDenied(KeyUnusable):
    """The store refuses to hand out the secret that yours points to."""

    code = "reference_denied"
    default_hint = "Check that the server's identity may read it there."


class ReferenceMissing(KeyUnusable):
    """There is nothing where your secret points to."""

    code = "reference_missing"
    default_hint = "Check the reference; it may have been deleted or renamed in its store."


class ReferenceWrong(KeyUnusable):
    """What your secret points to is no usable value."""

    code = "reference_wrong"
    default_hint = "Check the reference's key, and what its store holds there."


class EgressRefused(KeybearerError):
    """The key may not be sent to this address."""

    code = "egress_refused"
    status = 403
    default_hint = (
        "Keys go only to the hosts bound to them. An administrator may allow private hosts with KEYBEARER_EGRESS_ALLOW."
    )


class UpstreamError(KeybearerError):
    """The provider could not answer."""

    code = "upstream_error"
    status = 502
    default_hint = "Try again; if it lasts, look at the provider's status page."


class UpstreamGone(UpstreamError):
    """The address says that it is gone for good."""

    code = "upstream_gone"
    default_hint = "Name another address."


class UpstreamUnreachable(UpstreamError):
    """The provider cannot be reached."""

    code = "upstream_unreachable"


class UpstreamUnresolved(UpstreamUnreachable):
    """The provider's host name could not be resolved."""

    code = "upstream_unresolved"
    default_hint = "Check the provider's base URL for a typing error; nothing was sent."


class UpstreamTimeout(UpstreamError):
    """The provider did not answer in time."""

    code = "upstream_timeout"
    status = 504


class UpstreamTls(UpstreamError):
    """The provider's TLS certificate could not be verified."""

    code = "upstream_tls"
    default_hint = "Check the provider's base URL; nothing was sent."


class UpstreamMalformed(UpstreamError):
    """The provider's answer was malformed."""

    code = "upstream_malformed"


class Unavailable(KeybearerError):
    """The service cannot do this at the moment."""

    code = "unavailable"
    status = 503
    default_hint = "Try again in a few seconds."


class TrustLost(Unavailable):
    """The database cannot be reached, so revoked keys could not be told from valid ones."""

    code = "database_unreachable"


class JournalFailed(Unavailable):
    """The use could not be recorded, so the key was not sent."""

    code = "journal_failed"
    default_hint = "The operator should look at free disk space and the data directory's permissions."


class Frozen(Unavailable):
    """An administrator has stopped all use of keys."""

    code = "frozen"
    default_hint = "Ask the administrator; 'keybearer unfreeze' ends it."


class Overloaded(Unavailable):
    """The server has too much to do at the moment."""

    code = "overloaded"


class LimitsUnshared(Unavailable):
    """Another process of this deployment counts its limits, and both would let too much pass."""

    code = "limits_unshared"
    default_hint = "The operator shares the counts of several processes through Valkey: KEYBEARER_REDIS_URL; see docs/budgets.md."


class LimitsUnreachable(Unavailable):
    """This call is held to a limit, and the Valkey that counts it does not answer."""

    code = "limits_unreachable"
    default_hint = "Try again; the server's log says why. KEYBEARER_REDIS_URL names it; see docs/budgets.md."


class RotationBlocked(Unavailable):
    """The rotation has to wait."""

    code = "rotation_blocked"
    default_hint = (
        "Nothing is lost: 'keybearer key rotate --resume' goes on where it stopped. 'keybearer key status' tells who holds what."
    )


class ReferenceUnreachable(Unavailable):
    """The store that your secret points into does not answer."""

    code = "reference_unreachable"
    default_hint = "Try again; secrets that hold their own value go on serving meanwhile."


class KmsUnreachable(Unavailable):
    """The key management service does not answer."""

    code = "kms_unreachable"
    default_hint = (
        "It is asked only at the start and in a rotation: servers that run go on. Check its address, the network and its state."
    )


class OperatorError(KeybearerError):
    """The server cannot start or the command cannot run."""

    code = "operator"


class SettingsInvalid(OperatorError):
    """A setting is wrong."""

    code = "settings_invalid"
    default_hint = "See docs/settings.md."


class RootKeyError(OperatorError):
    """The root key is missing or wrong."""

    code = "root_key"
    default_hint = (
        "Restore the root key from your backup; see docs/troubleshooting.md. A new one cannot open what the old one sealed."
    )


class KmsDenied(RootKeyError):
    """The key management service refuses."""

    code = "kms_denied"
    default_hint = "Check that the key exists and is enabled, and that this server's identity may encrypt and decrypt with it."


class DatabaseError(OperatorError):
    """The database cannot be used."""

    code = "database"


class AuditBroken(OperatorError):
    """The audit trail does not verify."""

    code = "audit_broken"
    default_hint = "Keep the data as it is and see docs/troubleshooting.md."


class BackupError(OperatorError):
    """The backup cannot be used."""

    code = "backup"
    default_hint = "Nothing was changed. Take another backup; see docs/backup.md."


class EnvelopeError(OperatorError):
    """The sealed value does not open."""

    code = "envelope"
