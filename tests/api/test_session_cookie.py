"""The cookie of a session: what browsers take, over HTTPS and on plain loopback."""

from __future__ import annotations

from datetime import timedelta
from http.cookies import SimpleCookie
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response

from keybearer.api.auth import drop_session_cookie, set_session_cookie


@pytest.mark.parametrize(("is_secure", "name"), [(True, "__Host-keybearer"), (False, "keybearer_session")])
def test_a_cookie_goes_as_it_came(*, is_secure: bool, name: str) -> None:
    services: Any = SimpleNamespace(
        options=SimpleNamespace(secure_cookies=is_secure), sessions=SimpleNamespace(absolute=timedelta(days=1))
    )
    came, gone = Response(), Response()
    set_session_cookie(came, services, "kbtest")
    drop_session_cookie(gone, services)
    told = [SimpleCookie(response.headers["set-cookie"])[name] for response in (came, gone)]
    assert [each["max-age"] for each in told] == ["86400", "0"]
    for each in told:
        # RFC 6265bis, 4.1.3.2: a browser ignores a cookie of this prefix that is not Secure, or of another path.
        assert (bool(each["secure"]), each["path"], each["httponly"], each["samesite"]) == (is_secure, "/", True, "lax")
