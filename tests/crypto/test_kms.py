"""Root key providers: one contract for all, and what file and environment refuse."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
import traceback
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.crypto import make_vectors, reference
from tests.crypto.vectors import load

from keybearer.crypto.envelope import key_id_of
from keybearer.crypto.kms import Wrapper, env, file
from keybearer.crypto.kms.local import LocalWrapper, encode_key, parse_key
from keybearer.domain import SecretBytes
from keybearer.errors import RootKeyError

KEY = make_vectors.draw("a wrapping key")
ROOT_KEY = make_vectors.draw("a root key")
AAD = b"keybearer/v1/root-key of some deployment"


class WrapperContract:
    """What every provider must do. A subclass per provider gives ``wrapper``, ``same_key`` and ``other_key``."""

    def test_it_says_who_it_is(self, wrapper: Wrapper) -> None:
        assert wrapper.provider
        assert isinstance(wrapper.reference, str)

    async def test_what_it_wraps_it_unwraps(self, wrapper: Wrapper) -> None:
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        assert ROOT_KEY not in wrapped
        assert await wrapper.unwrap(wrapped, AAD) == ROOT_KEY

    async def test_after_a_restart_too(self, wrapper: Wrapper, same_key: Wrapper) -> None:
        assert await same_key.unwrap(await wrapper.wrap(ROOT_KEY, AAD), AAD) == ROOT_KEY

    async def test_not_for_another_deployment_or_root_key(self, wrapper: Wrapper) -> None:
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        for aad in (AAD + b"x", AAD[:-1], b""):
            with pytest.raises(RootKeyError, match="damaged, or belongs to another deployment"):
                await wrapper.unwrap(wrapped, aad)

    async def test_not_by_another_key(self, wrapper: Wrapper, other_key: Wrapper) -> None:
        with pytest.raises(RootKeyError, match="Wrong root key"):
            await other_key.unwrap(await wrapper.wrap(ROOT_KEY, AAD), AAD)

    async def test_not_when_damaged(self, wrapper: Wrapper) -> None:
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        for damaged in (b"", wrapped[:-1], wrapped + b"\x00", make_vectors.flipped(wrapped, len(wrapped) - 1, 1)):
            with pytest.raises(RootKeyError):
                await wrapper.unwrap(damaged, AAD)

    async def test_neither_it_nor_its_errors_show_a_key(self, wrapper: Wrapper, other_key: Wrapper) -> None:
        with pytest.raises(RootKeyError) as caught:
            await other_key.unwrap(await wrapper.wrap(ROOT_KEY, AAD), AAD)
        shown = f"{wrapper!r} {wrapper} {vars(wrapper)} {other_key!r} {caught.value!r} {caught.value.hint}"
        for secret in (ROOT_KEY, KEY):
            for text in (repr(secret), secret.hex(), b64encode(secret).decode()):
                assert text not in shown
        assert caught.value.hint


class TestFile(WrapperContract):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "root.key"

    @pytest.fixture
    def wrapper(self, path: Path) -> Wrapper:
        return file.create(path)

    @pytest.fixture
    def same_key(self, wrapper: Wrapper, path: Path) -> Wrapper:
        return file.open(path)

    @pytest.fixture
    def other_key(self, tmp_path: Path) -> Wrapper:
        return file.create(tmp_path / "other.key")


class TestEnvironment(WrapperContract):
    @pytest.fixture
    def wrapper(self) -> Wrapper:
        return env.parse(b64encode(KEY).decode())

    @pytest.fixture
    def same_key(self) -> Wrapper:
        return env.parse(KEY.hex())

    @pytest.fixture
    def other_key(self) -> Wrapper:
        return env.parse(make_vectors.draw("other wrapping key").hex())


class TestWrappedFormat:
    """Frozen: what was wrapped by an earlier version is unwrapped by every later one."""

    async def test_the_vector_unwraps(self) -> None:
        vector = load("deployment_v1.json")
        wrapper = env.parse(vector["wrapping_key"])
        wrapped = bytes.fromhex(vector["root_key"]["wrapped"])
        assert str(wrapper.key_id) == vector["wrapping_key_id"]
        assert key_id_of(wrapped) == wrapper.key_id
        assert (await wrapper.unwrap(wrapped, bytes.fromhex(vector["root_key"]["aad"]))).hex() == vector["root_key"]["unwrapped"]

    async def test_a_key_moves_from_file_to_environment(self, tmp_path: Path) -> None:
        kept = file.create(tmp_path / "root.key")
        moved = env.parse((tmp_path / "root.key").read_text())
        assert await moved.unwrap(await kept.wrap(ROOT_KEY, AAD), AAD) == ROOT_KEY

    async def test_the_message_names_both_keys_by_their_ids(self) -> None:
        wrapper, other = env.parse(KEY.hex()), env.parse(ROOT_KEY.hex())
        with pytest.raises(RootKeyError) as caught:
            await other.unwrap(await wrapper.wrap(ROOT_KEY, AAD), AAD)
        assert reference.wrapping_key_id(KEY)[:8] in caught.value.message
        assert reference.wrapping_key_id(ROOT_KEY)[:8] in caught.value.message
        assert "KEYBEARER_ROOT_KEY" in caught.value.message


class TestText:
    """32 bytes as base64, base64url or hex, and nothing else."""

    @settings(deadline=None)  # the machine may be busy
    @given(st.binary(min_size=32, max_size=32).map(lambda seed: hashlib.sha256(seed).digest()))
    def test_each_spelling_of_a_random_key(self, key: bytes) -> None:
        standard, urlsafe = b64encode(key).decode(), urlsafe_b64encode(key).decode()
        for text in (
            standard,
            standard.rstrip("="),
            urlsafe,
            urlsafe.rstrip("="),
            key.hex(),
            key.hex().upper(),
            f" {standard}\r\n",
        ):
            assert parse_key(text, "it").reveal() == key
        assert encode_key(SecretBytes(key)) == standard

    @pytest.mark.parametrize("text", ["", " ", "\n", "\t\r\n"])
    def test_empty(self, text: str) -> None:
        with pytest.raises(RootKeyError, match="is empty"):
            env.parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            "x",
            "kbtest",
            b64encode(KEY[:31]).decode(),
            b64encode(KEY[:16]).decode(),
            b64encode(KEY + b"x").decode(),
            b64encode(KEY + KEY).decode(),
            KEY[:31].hex(),
            KEY[:16].hex(),
            KEY.hex() + "00",
            KEY.hex()[:-1],
            "0x" + KEY.hex(),
            ":".join(f"{byte:02x}" for byte in KEY),
            b64encode(KEY).decode()[:20] + "\n" + b64encode(KEY).decode()[20:],
            b64encode(KEY).decode() + "=",
            "=" + b64encode(KEY).decode()[:-1],
            '"' + b64encode(KEY).decode() + '"',
            "base64:" + b64encode(KEY).decode(),
            "+-" + b64encode(KEY).decode()[2:],
            b64encode(KEY).decode()[:42] + "B=",
            "\N{FULLWIDTH DIGIT ONE}" * 64,
            "\N{ARABIC-INDIC DIGIT ONE}" * 64,
            "é" * 43,
            "\x00" * 44,
            "z" * 1_000_000,
        ],
    )
    def test_malformed(self, text: str) -> None:
        with pytest.raises(RootKeyError, match="is not 32 bytes") as caught:
            env.parse(text)
        assert "openssl rand" in caught.value.hint

    def test_the_spare_bits_of_base64_are_zero(self) -> None:
        text = b64encode(KEY).decode()
        spare = chr(ord(text[42]) + 1)
        with pytest.raises(RootKeyError, match="is not 32 bytes"):
            env.parse(text[:42] + spare + "=")

    @pytest.mark.parametrize(
        "key",
        [
            bytes(32),
            b"\xff" * 32,
            b"A" * 32,
            bytes(range(32)),
            bytes(range(255, 223, -1)),
            bytes(range(0, 96, 3)),
            b"\x00\x01" * 16,
            KEY[:16] * 2,
            KEY[:8] * 4,
            b"correct horse battery staple 123",
            b"0123456789abcdef0123456789abcdef",
            b"kbtest-0123456789-ABCDEFGHIJKLMN",
        ],
    )
    @pytest.mark.parametrize("write", [lambda key: key.hex(), lambda key: b64encode(key).decode()])
    def test_weak(self, key: bytes, write: Callable[[bytes], str]) -> None:
        with pytest.raises(RootKeyError, match="too weak"):
            env.parse(write(key))

    @pytest.mark.parametrize(
        "text",
        [
            "correcthorsebatterystaplecorrecthorsebatteo",
            "thequickbrownfoxjumpsoverthelazydogagain123"[:42] + "4",
            "CORRECTHORSEBATTERYSTAPLECORRECTHORSEBATTE0",
            "3141592653589793238462643383279502884197169399375105820974944592",
        ],
    )
    def test_typed_text_that_happens_to_be_base64_or_hex(self, text: str) -> None:
        with pytest.raises(RootKeyError, match="too weak"):
            env.parse(text)

    def test_nothing_of_a_refused_key_shows(self) -> None:
        for text in (b64encode(KEY + b"x").decode(), b64encode(b"correct horse battery staple 123").decode()):
            with pytest.raises(RootKeyError) as caught:
                env.parse(text)
            told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            inner = traceback.StackSummary.from_list([frame for frame in told.stack if frame.filename.endswith("local.py")])
            assert inner
            shown = "".join(inner.format()) + str(caught.value) + caught.value.hint
            assert text not in shown
            assert "correct horse" not in shown


class TestKeyFile:
    @pytest.mark.parametrize("umask", [0, 0o277])
    def test_it_is_made_whole_and_for_its_owner_only(self, tmp_path: Path, umask: int) -> None:
        path = tmp_path / "root.key"
        umask = os.umask(umask)
        try:
            made = file.create(path)
        finally:
            os.umask(umask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_nlink == 1
        assert [found.name for found in tmp_path.iterdir()] == ["root.key"]
        assert file.open(path).key_id == made.key_id
        assert (made.provider, made.reference) == ("file", str(path))

    def test_each_is_another(self, tmp_path: Path) -> None:
        assert len({file.create(tmp_path / f"{number}.key").key_id for number in range(20)}) == 20

    def test_an_existing_one_is_never_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "root.key"
        file.create(path)
        before = path.read_bytes()
        with pytest.raises(file.KeyFileExists):
            file.create(path)
        assert path.read_bytes() == before
        assert [found.name for found in tmp_path.iterdir()] == ["root.key"]

    def test_nor_an_empty_one_nor_a_dangling_link(self, tmp_path: Path) -> None:
        path, link = tmp_path / "root.key", tmp_path / "link.key"
        path.touch()
        link.symlink_to(tmp_path / "nowhere")
        for taken in (path, link):
            with pytest.raises(file.KeyFileExists):
                file.create(taken)
        assert path.read_bytes() == b""
        assert not (tmp_path / "nowhere").exists()

    def test_processes_that_start_first_together_end_with_one(self, tmp_path: Path) -> None:
        path = tmp_path / "root.key"
        count = 8
        barrier, found = threading.Barrier(count), []

        def start() -> None:
            barrier.wait()
            found.append(file.obtain(path, may_create=True).key_id)

        threads = [threading.Thread(target=start) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == count
        assert len(set(found)) == 1
        assert [kept.name for kept in tmp_path.iterdir()] == ["root.key"]

    def test_a_missing_one_is_made_only_where_nothing_needs_the_old_one(self, tmp_path: Path) -> None:
        path = tmp_path / "root.key"
        with pytest.raises(file.KeyFileMissing) as caught:
            file.obtain(path, may_create=False)
        assert "is missing" in caught.value.message
        assert "backup" in caught.value.hint
        assert not path.exists()
        made = file.obtain(path, may_create=True)
        assert file.obtain(path, may_create=False).key_id == made.key_id

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777])
    def test_others_may_not_reach_it(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "root.key"
        file.create(path)
        path.chmod(mode)
        with pytest.raises(RootKeyError, match=f"mode {mode:04o}") as caught:
            file.open(path)
        assert caught.value.hint == f"Run: chmod 600 {path}"

    @pytest.mark.parametrize("mode", [0o600, 0o400])
    def test_its_owner_may(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "root.key"
        made = file.create(path)
        path.chmod(mode)
        assert file.open(path).key_id == made.key_id

    def test_links_are_refused(self, tmp_path: Path) -> None:
        file.create(tmp_path / "real.key")
        (tmp_path / "root.key").symlink_to(tmp_path / "real.key")
        (tmp_path / "dangling.key").symlink_to(tmp_path / "nowhere")
        for name in ("root.key", "dangling.key"):
            with pytest.raises(RootKeyError, match="is a symbolic link"):
                file.open(tmp_path / name)

    def test_what_is_no_file_is_refused_and_does_not_hang(self, tmp_path: Path) -> None:
        (tmp_path / "directory").mkdir(mode=0o700)
        os.mkfifo(tmp_path / "fifo", 0o600)
        for name in ("directory", "fifo"):
            with pytest.raises(RootKeyError, match="is no regular file"):
                file.open(tmp_path / name)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"\n", "is empty"),
            (b"kbtest", "is not 32 bytes"),
            (KEY, "is not 32 bytes"),
            (b"\xff\xfe" + KEY.hex().encode("utf-16-le"), "is not 32 bytes"),
            (b"\xef\xbb\xbf" + KEY.hex().encode(), "is not 32 bytes"),
            (KEY.hex().encode() + b"\n" + KEY.hex().encode(), "is not 32 bytes"),
            (b"-----BEGIN PRIVATE KEY-----\n", "is not 32 bytes"),
            (b"x" * 100_000, "is not 32 bytes"),
            (bytes(32).hex().encode(), "too weak"),
        ],
    )
    def test_its_content_is_held_to_the_same_rules(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "root.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(RootKeyError, match=message) as caught:
            file.open(path)
        assert str(path) in caught.value.message

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RootKeyError, match="cannot be made: No such file or directory"):
            file.create(tmp_path / "nowhere" / "root.key")

    def test_killed_while_making_it_leaves_none_rather_than_half(self, tmp_path: Path) -> None:
        """The process dies between the write and the link: the next start finds no key file and makes one."""
        path = tmp_path / "root.key"
        script = (
            "import os, sys; from pathlib import Path; from keybearer.crypto.kms import file\n"
            "os.link = lambda *arguments: os._exit(9)\n"
            f"file.create(Path({str(path)!r}))"
        )
        assert subprocess.run([sys.executable, "-c", script], check=False, env={"PYTHONPATH": "src"}).returncode == 9
        assert not path.exists()
        assert isinstance(file.obtain(path, may_create=True), LocalWrapper)
