"""The wrapping key in a file: one line of base64, owner-readable only, made at the first run.

The file appears whole or not at all: it is written beside its place with O_EXCL and mode 0600, synced, and then linked there,
which fails where something lies already. So two processes that start first together end with one key, and neither reads half.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from keybearer.crypto.envelope import KEY_BYTES
from keybearer.crypto.kms.local import LocalWrapper, encode_key, parse_key
from keybearer.domain import SecretBytes
from keybearer.errors import RootKeyError

PROVIDER = "file"
_MODE = 0o600
_OTHERS = 0o077
_MOST_BYTES = 4096


class KeyFileMissing(RootKeyError):
    """The root key file is missing."""

    default_hint = (
        "The database holds secrets that only this key opens: put the file back from your backup. Nothing was changed; "
        "a new key is never made for a database that is in use."
    )


class KeyFileExists(RootKeyError):
    """The root key file exists already."""

    default_hint = "It was left as it is. Move it away only if no database needs it."


def open(path: Path) -> LocalWrapper:  # noqa: A001  # reads as kms.file.open
    """Return the wrapper for the key file at ``path``.

    Raises ``KeyFileMissing``, or ``RootKeyError`` where it is unreadable, a symbolic link, no regular file, accessible to others
    than its owner, malformed or weak.
    """
    try:
        # NONBLOCK: a FIFO in its place must not stop the start for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeyFileMissing(f"The root key file {path} is missing.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        _require_private(path, os.fstat(descriptor))
        data = os.read(descriptor, _MOST_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(descriptor)
    # Bytes that are no ASCII become U+FFFD, which no encoding of a key has.
    return LocalWrapper(PROVIDER, str(path), parse_key(data.decode("ascii", "replace"), f"The root key file {path}"))


def create(path: Path) -> LocalWrapper:
    """Make a new random key at ``path``, mode 0600, synced to disk. Raises ``KeyFileExists`` or ``RootKeyError``."""
    key = SecretBytes(secrets.token_bytes(KEY_BYTES))
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            _write(descriptor, encode_key(key).encode("ascii") + b"\n")
            os.link(new, path)
        finally:
            os.close(descriptor)
            new.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except FileExistsError:
        raise KeyFileExists(f"The root key file {path} exists already.") from None
    except OSError as error:
        raise RootKeyError(
            f"The root key file {path} cannot be made: {error.strerror}.", hint="Check the directory's owner and free space."
        ) from None
    return LocalWrapper(PROVIDER, str(path), key)


def obtain(path: Path, *, may_create: bool) -> LocalWrapper:
    """``open``; where the file is missing and ``may_create`` (no database holds anything yet), ``create``, whoever is first."""
    try:
        return open(path)
    except KeyFileMissing:
        if not may_create:
            raise
    try:
        return create(path)
    except KeyFileExists:
        return open(path)  # another process was first, and its file is whole


def _require_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RootKeyError(f"The root key file {path} is no regular file.", hint="Put the key itself there.")
    if status.st_mode & _OTHERS:
        raise RootKeyError(
            f"The root key file {path} can be accessed by others (mode {stat.S_IMODE(status.st_mode):04o}).",
            hint=f"Run: chmod 600 {path}",
        )


def _unreadable(path: Path, error: OSError) -> RootKeyError:
    if path.is_symlink():
        return RootKeyError(
            f"The root key file {path} is a symbolic link.", hint="Put the key file itself there, not a link to it."
        )
    return RootKeyError(f"The root key file {path} cannot be read: {error.strerror}.", hint="Check its owner and mode (0600).")


def _write(descriptor: int, data: bytes) -> None:
    os.fchmod(descriptor, _MODE)
    if os.write(descriptor, data) != len(data):
        raise OSError(0, "short write")
    os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    """Sync the new name, too: it must survive power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
