"""Mail of the deployment's own, through the server that its operator set: that it is trusted, and where it is, is theirs to say."""

from __future__ import annotations

from email.errors import HeaderParseError
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from pathlib import Path

import aiosmtplib

from keybearer.errors import Invalid, UpstreamError
from keybearer.gateway import tls
from keybearer.gateway.connection_string import parse

_PORTS = {"smtps": 465, "smtp+starttls": 587, "smtp": 25}
_SECONDS = 20.0


class Mailer:
    """Sends mail. Raises ``Invalid`` for a URL or a sender that is none."""

    def __init__(self, url: str, sender: str, ca_file: Path | None = None) -> None:
        scheme = url.partition("://")[0].lower()
        if scheme not in _PORTS:
            raise Invalid("The mail server's URL is wrong.", hint="Write smtps://, smtp+starttls:// or smtp://.")
        self._target = parse(url, _PORTS[scheme])
        if "@" not in parseaddr(sender)[1]:
            raise Invalid("KEYBEARER_MAIL_FROM is no address.", hint="Write name@example.com.")
        self._sender = sender
        self._ca_file = ca_file

    async def send(self, to: str, subject: str, text: str, message_id: str) -> None:
        """Send one mail. ``message_id`` stays the same when it is tried again, so that mailboxes show it once.

        Raises ``UpstreamError``, which repeats no word of the server's.
        """
        message = EmailMessage()
        try:
            message["From"], message["To"], message["Subject"] = self._sender, to, subject
        except (ValueError, HeaderParseError):
            raise UpstreamError("The mail has an address or a subject that mail cannot have.") from None
        message["Date"] = formatdate(usegmt=True)
        message["Message-ID"] = f"<{message_id}@{parseaddr(self._sender)[1].rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: answered by nobody's holiday note
        message.set_content(text)
        target = self._target
        try:
            await aiosmtplib.send(
                message,
                hostname=target.host,
                port=target.port,
                username=target.user or None,
                password=target.password.reveal().decode() if target.user else None,
                local_hostname="localhost",
                timeout=_SECONDS,
                use_tls=target.scheme == "smtps",
                start_tls={"smtps": False, "smtp+starttls": True}.get(target.scheme),
                tls_context=tls.verified(self._ca_file),
            )
        except (aiosmtplib.SMTPException, OSError):
            raise UpstreamError("The mail server did not take the mail.") from None
