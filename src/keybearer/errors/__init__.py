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

from keybearer.errors.base import (
    FieldError,
    KeybearerError,
)
from keybearer.errors.caller import (
    AddressRefused,
    CallUnbounded,
    Conflict,
    CredentialsConflict,
    CsrfFailed,
    Forbidden,
    Invalid,
    InvalidJson,
    InvalidRequest,
    KeyDoubtful,
    KeyRefused,
    LimitExceeded,
    LimitReached,
    LimitTampered,
    LinkInvalid,
    MethodNotAllowed,
    ModelAmbiguous,
    ModelNotAllowed,
    ModelUnknown,
    NotFetchable,
    NotFound,
    PriceUnknown,
    ProviderNotAllowed,
    ProviderUnknown,
    RateLimited,
    RequestTimeout,
    RouteUnknown,
    ScopeMissing,
    SessionInvalid,
    SharedKeyRefused,
    SignInAgain,
    SignInFailed,
    TokenInvalid,
    TokenMissing,
    TooLarge,
    Unauthenticated,
    UnsupportedMediaType,
)
from keybearer.errors.elsewhere import (
    Frozen,
    JournalFailed,
    KmsUnreachable,
    LimitsUnreachable,
    LimitsUnshared,
    Overloaded,
    ReferenceUnreachable,
    RotationBlocked,
    TrustLost,
    Unavailable,
    UpstreamError,
    UpstreamGone,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnreachable,
    UpstreamUnresolved,
)
from keybearer.errors.keys import (
    EgressRefused,
    KeyExpired,
    KeyFailed,
    KeyInactive,
    KeyMissing,
    KeyUnreadable,
    KeyUnusable,
    ReferenceDenied,
    ReferenceMissing,
    ReferenceWrong,
)
from keybearer.errors.operator import (
    AuditBroken,
    BackupError,
    DatabaseError,
    EnvelopeError,
    KmsDenied,
    OperatorError,
    RootKeyError,
    SettingsInvalid,
)

__all__ = [
    "AddressRefused",
    "AuditBroken",
    "BackupError",
    "CallUnbounded",
    "Conflict",
    "CredentialsConflict",
    "CsrfFailed",
    "DatabaseError",
    "EgressRefused",
    "EnvelopeError",
    "FieldError",
    "Forbidden",
    "Frozen",
    "Invalid",
    "InvalidJson",
    "InvalidRequest",
    "JournalFailed",
    "KeyDoubtful",
    "KeyExpired",
    "KeyFailed",
    "KeyInactive",
    "KeyMissing",
    "KeyRefused",
    "KeyUnreadable",
    "KeyUnusable",
    "KeybearerError",
    "KmsDenied",
    "KmsUnreachable",
    "LimitExceeded",
    "LimitReached",
    "LimitTampered",
    "LimitsUnreachable",
    "LimitsUnshared",
    "LinkInvalid",
    "MethodNotAllowed",
    "ModelAmbiguous",
    "ModelNotAllowed",
    "ModelUnknown",
    "NotFetchable",
    "NotFound",
    "OperatorError",
    "Overloaded",
    "PriceUnknown",
    "ProviderNotAllowed",
    "ProviderUnknown",
    "RateLimited",
    "ReferenceDenied",
    "ReferenceMissing",
    "ReferenceUnreachable",
    "ReferenceWrong",
    "RequestTimeout",
    "RootKeyError",
    "RotationBlocked",
    "RouteUnknown",
    "ScopeMissing",
    "SessionInvalid",
    "SettingsInvalid",
    "SharedKeyRefused",
    "SignInAgain",
    "SignInFailed",
    "TokenInvalid",
    "TokenMissing",
    "TooLarge",
    "TrustLost",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedMediaType",
    "UpstreamError",
    "UpstreamGone",
    "UpstreamMalformed",
    "UpstreamTimeout",
    "UpstreamTls",
    "UpstreamUnreachable",
    "UpstreamUnresolved",
]
