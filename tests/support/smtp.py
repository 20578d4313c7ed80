"""A mail server on loopback, in a thread of its own: greets, speaks TLS, asks who signs in, and keeps what it is sent."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email
import email.policy
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage

USER, PASSWORD = "kbtest-mailer", "kbtest-mail-password-0123456789"


@dataclass
class MailServer:
    """What it does, and what it was sent."""

    tls: ssl.SSLContext | None = None
    is_implicit: bool = False
    offers_starttls: bool = True
    greeting: str = "220 kbtest ready"
    sign_in: str = ""
    """Said to AUTH instead of judging the password."""
    refuses_mails: int = 0
    """How many mails to refuse for now (451), before taking them."""
    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(*lines: str) -> None:
            writer.write("".join(f"{line}\r\n" for line in lines).encode())

        say(self.greeting)
        is_tls = self.is_implicit
        while line := (await reader.readline()).decode().strip():
            self.heard.append(line)
            verb = line.upper().split()[0]
            if verb == "EHLO":
                more = ["250-STARTTLS"] if self.tls and self.offers_starttls and not is_tls else []
                say("250-kbtest", *more, "250-AUTH PLAIN", "250 SIZE 1000000")
            elif verb == "STARTTLS":
                assert self.tls is not None
                say("220 go on")
                await writer.start_tls(self.tls)
                is_tls = True
            elif verb == "AUTH":
                say(self.sign_in or self._judge(line))
            elif verb == "DATA":
                say("354 go on")
                raw = (await reader.readuntil(b"\r\n.\r\n"))[:-5].replace(b"\r\n..", b"\r\n.")
                if self.refuses_mails:
                    self.refuses_mails -= 1
                    say("451 later")
                else:
                    message = email.message_from_bytes(raw, policy=email.policy.default)
                    assert isinstance(message, EmailMessage)
                    self.mails.append(message)
                    say("250 taken")
            elif verb == "QUIT":
                say("221 bye")
                await writer.drain()
                return
            else:
                say("250 ok")
            await writer.drain()

    def _judge(self, line: str) -> str:
        given = base64.b64decode(line.split()[2]).split(b"\0")[1:]
        good = line.upper().startswith("AUTH PLAIN ") and given == [USER.encode(), PASSWORD.encode()]
        return "235 welcome" if good else f"535 5.7.8 no such user or password: {given[0].decode()}"


@contextlib.contextmanager
def running(server: MailServer | None = None) -> Iterator[MailServer]:
    """Serve for the length of a block."""
    server = server or MailServer()
    ready, loops = threading.Event(), []
    ended = asyncio.Event()

    async def serve() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=server.tls if server.is_implicit else None)
        server.port = listening.sockets[0].getsockname()[1]
        loops.append(asyncio.get_running_loop())
        ready.set()
        await ended.wait()
        listening.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    try:
        assert ready.wait(10)
        yield server
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join(10)
