"""What others did not do: providers (502, 504), and what this deployment itself stands on (503)."""

from __future__ import annotations

from keybearer.errors.base import KeybearerError


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
