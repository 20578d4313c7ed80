"""uvicorn's class is not documented as a base. What we rely on is written down here, and changes are noticed before people do."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState

from keybearer.gateway.protocol import GatewayProtocol

METHODS = {
    "__init__", "connection_made", "connection_lost", "eof_received", "_unset_keepalive_if_required", "_get_upgrade",
    "_should_upgrade_to_ws", "_unsupported_upgrade_warning", "_should_upgrade", "data_received", "handle_websocket_upgrade",
    "send_400_response", "on_message_begin", "on_url", "on_header", "on_headers_complete", "_start_asgi_task", "on_body",
    "on_message_complete", "on_response_complete", "shutdown", "pause_writing", "resume_writing", "timeout_keep_alive_handler",
}  # fmt: skip
KEPT = {"_start_asgi_task"}
"""Used as it is."""
EXTENDED = {"__init__", "connection_made"}
"""Overridden, and called by the override."""
UNREACHABLE = {
    "_unset_keepalive_if_required",  # called by overridden methods only
    "_get_upgrade", "_should_upgrade_to_ws", "_unsupported_upgrade_warning", "_should_upgrade",  # upgrades are refused in the head
}  # fmt: skip


def methods(cls: type) -> set[str]:
    return {name for name, found in vars(cls).items() if inspect.isfunction(found)}


def test_the_version_is_the_one_we_have_read() -> None:
    assert version("uvicorn") == "0.54.0"


def test_every_method_of_the_base_is_overridden_or_known_to_be_harmless() -> None:
    assert methods(HttpToolsProtocol) == METHODS
    assert METHODS - methods(GatewayProtocol) == KEPT | UNREACHABLE


def test_what_is_not_overridden_touches_no_request_and_calls_nothing_of_ours() -> None:
    for name in KEPT | EXTENDED:
        source = inspect.getsource(getattr(HttpToolsProtocol, name))
        assert not re.search(r"self\.(cycle\.|pipeline\.|scope\[|transport\.(write|close))", source), name
    callers = {
        name
        for name in METHODS
        for found in UNREACHABLE
        if f"self.{found}()" in inspect.getsource(getattr(HttpToolsProtocol, name))
    }
    assert callers & (KEPT | EXTENDED) == set()


def test_the_pieces_that_are_used_have_the_form_we_use() -> None:
    assert list(inspect.signature(HttpToolsProtocol.__init__).parameters) == [
        "self",
        "config",
        "server_state",
        "app_state",
        "_loop",
    ]
    assert set(inspect.signature(RequestResponseCycle.__init__).parameters) == {
        "self", "scope", "transport", "flow", "logger", "access_logger", "access_log", "default_headers", "message_event",
        "expect_100_continue", "keep_alive", "on_response",
    }  # fmt: skip
    cycle = inspect.getsource(RequestResponseCycle)
    for attribute in ("disconnected", "keep_alive", "body", "more_body", "response_started", "response_complete"):
        assert f"self.{attribute} = " in cycle
    assert {"pause_reading", "resume_reading", "pause_writing", "resume_writing", "drain"} <= methods(FlowControl)
    assert set(vars(ServerState())) == {"total_requests", "connections", "tasks", "default_headers"}
    base = inspect.getsource(HttpToolsProtocol.__init__)
    used = [
        "app",
        "loop",
        "logger",
        "access_logger",
        "access_log",
        "parser",
        "root_path",
        "asgi_version",
        "limit_concurrency",
        "app_state",
        "timeout_keep_alive",
        "server_state",
        "connections",
        "tasks",
        "transport",
        "flow",
        "server",
        "client",
        "scheme",
    ]
    for attribute in used:
        assert re.search(rf"self\.{attribute}\b.* = ", base), attribute


def test_the_server_asks_connections_for_nothing_but_shutdown() -> None:
    source = inspect.getsource(Server)
    assert re.findall(r"\bconnection\.(\w+)", source) == ["shutdown"]
    assert "http_protocol_class(" in source
    assert "app_state=self.lifespan.state" in source


def test_a_cycle_that_is_told_of_a_disconnect_writes_nothing_more() -> None:
    """``AsgiTurn`` relies on it to answer a spoilt body itself."""
    source = inspect.getsource(RequestResponseCycle.send)
    drained = source.index("await self.flow.drain()")
    silent = source.index("if self.disconnected:\n            return")
    assert drained < silent < source.index("self.transport.write")
