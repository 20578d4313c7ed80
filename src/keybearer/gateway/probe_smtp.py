"""The connection test of a mail server: greeting, ``EHLO``, TLS, ``AUTH``; no mail is sent.

``smtps://`` speaks TLS from the start, ``smtp+starttls://`` insists on STARTTLS, ``smtp://`` takes it where the server offers it, and
insists on a public network. Certificates are verified in all of them.
"""

from __future__ import annotations

import ssl

import aiosmtplib

from keybearer.domain import SecretBytes
from keybearer.errors import Invalid, UpstreamMalformed, UpstreamTimeout, UpstreamTls, UpstreamUnreachable
from keybearer.gateway.connection_string import ConnectionString, parse
from keybearer.gateway.dial import Dialer, Place
from keybearer.gateway.verdict import ProbeStatus, Refused, masked

_PORTS = {"smtps": 465, "smtp+starttls": 587, "smtp": 587}
_GREETED_AS = "localhost"
"""Our name in EHLO: looking up this machine's own would take its time."""
_BY_CODE: dict[int, ProbeStatus] = {
    421: "rate_limited", 450: "rate_limited", 451: "rate_limited", 452: "rate_limited", 454: "rate_limited",
    530: "invalid", 534: "invalid", 535: "invalid", 538: "tls", 550: "forbidden", 553: "forbidden", 554: "forbidden",
}  # fmt: skip
"""RFC 4954 and RFC 5321; those of AUTH are the ones that tell most."""


async def probe_smtp(dialer: Dialer, value: SecretBytes, *, is_systems: bool, seconds: float) -> None:
    """Connect, greet, sign in where there is a user. Raises ``Invalid``, ``Refused``, ``KeybearerError``."""
    text = value.reveal().decode("utf-8", "replace")
    scheme = text.partition("://")[0].lower()
    if scheme not in _PORTS:
        raise Invalid("This is no address of a mail server.", hint="Write smtps://, smtp+starttls:// or smtp://.")
    target = parse(text, _PORTS[scheme])
    place = await dialer.find(target.host, target.port, is_systems=is_systems)
    client = client_of(dialer, target, place, seconds)
    try:
        await client.connect()
        if target.user:
            password = target.password.reveal().decode("utf-8", "replace")
            await client.login(target.user, password)
        await client.quit()
    except (aiosmtplib.SMTPException, OSError, ssl.SSLError) as error:
        raise _translated(error, target) from None
    finally:
        client.close()


def client_of(dialer: Dialer, target: ConnectionString, place: Place, seconds: float) -> aiosmtplib.SMTP:
    """A client for the place that was checked."""
    insists = place.is_public or target.scheme == "smtp+starttls"
    return aiosmtplib.SMTP(
        hostname=place.address,
        port=place.port,
        local_hostname=_GREETED_AS,
        timeout=seconds,
        use_tls=target.scheme == "smtps",
        start_tls=False if target.scheme == "smtps" else (True if insists else None),
        tls_context=dialer.named_tls(target.host),
    )


def _translated(error: Exception, target: ConnectionString) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UpstreamTls("The server's certificate could not be verified.", hint="")
        if isinstance(cause, ssl.SSLError):
            return UpstreamTls("No TLS connection to the server.", hint="")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return _refusal(error, target)
    return _failure(error)


def _refusal(error: aiosmtplib.SMTPResponseException, target: ConnectionString) -> Refused:
    status = _BY_CODE.get(error.code, "error")
    if isinstance(error, aiosmtplib.SMTPAuthenticationError) and status == "invalid":
        return Refused(status, "The server refused the user name or the password.")
    return Refused(status, masked(f"{error.code} {error.message}", target.hidden))


def _failure(error: Exception) -> Exception:
    match error:
        case aiosmtplib.SMTPTimeoutError():
            return UpstreamTimeout("The server did not answer in time.", hint="")
        case aiosmtplib.SMTPServerDisconnected():
            return UpstreamMalformed("The server closed the connection. Is it a mail server?", hint="")
        case aiosmtplib.SMTPConnectError() if "Unexpected EOF" in str(error) or "onnection lost" in str(error):
            return UpstreamMalformed("The server closed the connection. Is it a mail server?", hint="")
        case aiosmtplib.SMTPConnectError() | OSError():
            return UpstreamUnreachable("The server could not be connected to.", hint="")
        case aiosmtplib.SMTPException() if "STARTTLS" in str(error):
            return UpstreamTls("The server does not offer STARTTLS, and in clear no password is sent to it.", hint="")
        case aiosmtplib.SMTPException() if "AUTH" in str(error):
            return Refused("error", "The server offers no way to sign in.")
    return UpstreamMalformed("The server's answer was malformed.", hint="")
