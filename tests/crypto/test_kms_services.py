"""Root key providers that derive or ask: passphrase, AWS KMS, Google Cloud KMS, OpenBao. The contract stands in ``test_kms``."""

from __future__ import annotations

import logging
import socket
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.crypto import make_vectors
from tests.crypto.test_kms import AAD, KEY, ROOT_KEY, WrapperContract
from tests.support import aws as aws_server
from tests.support import cloud_kms, openbao
from tests.support.aws import REGION, Aws
from tests.support.cloud_kms import RING, CloudKms
from tests.support.openbao import OpenBao

from keybearer import config, root_keys
from keybearer.crypto.kms import Wrapper, passphrase
from keybearer.crypto.kms.aws import AwsKms
from keybearer.crypto.kms.gcp import GcpKms, crc32c
from keybearer.crypto.kms.openbao import Access, Transit
from keybearer.crypto.kms.providers import NAMES, Options, Providers
from keybearer.crypto.kms.wrapped import frame, unframe
from keybearer.domain import SecretBytes
from keybearer.errors import KmsDenied, KmsUnreachable, OperatorError, RootKeyError, SettingsInvalid

PHRASE = "kbtest correct horse battery staple"
CHEAP = passphrase.Costs(memory=64, passes=1, lanes=1)


class TestPassphrase(WrapperContract):
    @pytest.fixture
    def wrapper(self) -> Wrapper:
        return passphrase.parse(PHRASE, CHEAP)

    @pytest.fixture
    def same_key(self) -> Wrapper:
        """A later version with other costs: those that were used lie beside the key."""
        return passphrase.parse(f" {PHRASE}\n", passphrase.Costs(128, 2, 2))

    @pytest.fixture
    def other_key(self) -> Wrapper:
        return passphrase.parse(PHRASE + "r", CHEAP)

    async def test_the_usual_costs_are_those_recommended_or_more(self) -> None:
        wrapped = await passphrase.parse(PHRASE).wrap(ROOT_KEY, AAD)
        assert wrapped[4:16] == (256 * 1024).to_bytes(4, "big") + (3).to_bytes(4, "big") + (4).to_bytes(4, "big")
        assert await passphrase.parse(PHRASE, CHEAP).unwrap(wrapped, AAD) == ROOT_KEY

    async def test_each_wrapping_has_another_salt(self, wrapper: Wrapper) -> None:
        first, second = await wrapper.wrap(ROOT_KEY, AAD), await wrapper.wrap(ROOT_KEY, AAD)
        assert first[16:48] != second[16:48]

    @pytest.mark.parametrize("place", [3, 4, 7, 11, 15, 16, 47])
    async def test_changed_costs_and_salts_do_not_open(self, wrapper: Wrapper, place: int) -> None:
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        with pytest.raises(RootKeyError):
            await wrapper.unwrap(make_vectors.flipped(wrapped, place, 1), AAD)

    async def test_costs_that_would_eat_the_machine_are_not_tried(self, wrapper: Wrapper) -> None:
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        began = time.monotonic()
        for costs in (
            b"\xff" * 12,
            bytes(12),
            b"\x00\x10\x00\x01" + wrapped[8:16],
            wrapped[4:8] + b"\x00\x01\x00\x00" + wrapped[12:16],
        ):
            with pytest.raises(RootKeyError, match="damaged"):
                await wrapper.unwrap(wrapped[:4] + costs + wrapped[16:], AAD)
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("text", ["", " \n", "kbtest", "kbtest-kbtest-1234", "k" * 40, "ababababababababababababab"])
    def test_weak_ones_are_refused_and_not_repeated(self, text: str) -> None:
        with pytest.raises(RootKeyError, match=r"is empty|too weak") as caught:
            passphrase.parse(text)
        assert not text.strip() or text not in caught.value.message + caught.value.hint

    async def test_the_same_text_in_another_unicode_form(self) -> None:
        composed, decomposed = "kbtest caf\u00e9 correct horse", "kbtest cafe\u0301 correct horse"
        wrapped = await passphrase.parse(composed, CHEAP).wrap(ROOT_KEY, AAD)
        assert await passphrase.parse(decomposed, CHEAP).unwrap(wrapped, AAD) == ROOT_KEY


class ServiceContract(WrapperContract):
    """What every provider that calls a service must do besides. A subclass gives ``denied``, ``silent`` and ``renamed``."""

    async def test_a_denial_says_so(self, denied: Wrapper) -> None:
        wrapped = frame(denied.reference, b"kbtest")
        for call in (denied.wrap(ROOT_KEY, AAD), denied.unwrap(wrapped, AAD)):
            with pytest.raises(KmsDenied) as caught:
                await call
            self.shows_nothing(caught.value)

    async def test_silence_ends_with_a_time_out(self, silent: Wrapper) -> None:
        began = time.monotonic()
        with pytest.raises(KmsUnreachable) as caught:
            await silent.wrap(ROOT_KEY, AAD)
        assert time.monotonic() - began < 20
        self.shows_nothing(caught.value)

    async def test_nobody_there(self, nobody: Wrapper) -> None:
        with pytest.raises(KmsUnreachable) as caught:
            await nobody.unwrap(frame(nobody.reference, b"kbtest"), AAD)
        self.shows_nothing(caught.value)

    async def test_a_key_that_moved_on_still_unwraps(self, wrapper: Wrapper, next_key: Wrapper) -> None:
        """Two keys are named: the first wraps from now on, the second unwraps what it wrapped."""
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        assert await next_key.unwrap(wrapped, AAD) == ROOT_KEY
        assert next_key.reference != wrapper.reference
        assert unframe(await next_key.wrap(ROOT_KEY, AAD))[0] == next_key.reference

    async def test_logs_at_their_noisiest_show_no_key(self, wrapper: Wrapper, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        await wrapper.unwrap(await wrapper.wrap(ROOT_KEY, AAD), AAD)
        for text in (repr(ROOT_KEY), ROOT_KEY.hex(), b64encode(ROOT_KEY).decode()):
            assert text not in caplog.text

    def shows_nothing(self, error: Exception) -> None:
        assert isinstance(error, (KmsDenied, KmsUnreachable))
        shown = f"{error!r} {error.message} {error.hint}"
        assert error.hint
        assert error.__cause__ is None
        for text in (repr(ROOT_KEY), ROOT_KEY.hex(), b64encode(ROOT_KEY).decode(), "kbtest-secret", "kbtest-access"):
            assert text not in shown


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with pytest.MonkeyPatch.context() as patch, aws_server.running(patch) as running:
        yield running


@pytest.fixture(scope="module")
def keys(aws: Aws) -> tuple[str, str]:
    return aws.key(), aws.key()


@pytest.fixture(scope="module")
def bao() -> Iterator[OpenBao]:
    with openbao.running() as running:
        yield running


@pytest.fixture(scope="module")
def access(bao: OpenBao) -> Access:
    """What docs/keys.md tells to grant, and nothing else."""
    return Access(bao.address, SecretBytes(bao.token_for(policy("one") + policy("two")).encode()))


@pytest.fixture
def silence() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


class TestAws(ServiceContract):
    @pytest.fixture
    def connect(self, aws: Aws) -> Callable[..., Wrapper]:
        def connect(*keys: str, endpoint: str = aws.endpoint, timeout: float = 30) -> Wrapper:
            return AwsKms(keys, region=REGION, endpoint=endpoint, timeout=timeout)

        return connect

    @pytest.fixture
    def wrapper(self, connect: Callable[..., Wrapper], keys: tuple[str, str]) -> Wrapper:
        return connect(keys[0])

    @pytest.fixture
    def same_key(self, aws: Aws, connect: Callable[..., Wrapper], keys: tuple[str, str]) -> Wrapper:
        """By an alias, which the settings name from now on."""
        aws.kms().create_alias(AliasName="alias/kbtest-same", TargetKeyId=keys[0])
        return connect("alias/kbtest-same")

    @pytest.fixture
    def other_key(self, connect: Callable[..., Wrapper], keys: tuple[str, str]) -> Wrapper:
        return connect(keys[1])

    @pytest.fixture
    def next_key(self, connect: Callable[..., Wrapper], keys: tuple[str, str]) -> Wrapper:
        return connect(keys[1], keys[0])

    @pytest.fixture
    def denied(self, aws: Aws, connect: Callable[..., Wrapper]) -> Wrapper:
        return connect(f"arn:aws:kms:{REGION}:123456789012:key/00000000-0000-0000-0000-000000000000")

    @pytest.fixture
    def silent(self, connect: Callable[..., Wrapper], keys: tuple[str, str], silence: str) -> Wrapper:
        return connect(keys[0], endpoint=silence, timeout=0.3)

    @pytest.fixture
    def nobody(self, connect: Callable[..., Wrapper], keys: tuple[str, str], closed: str) -> Wrapper:
        return connect(keys[0], endpoint=closed)

    async def test_the_context_is_sent_as_text(self, aws: Aws, wrapper: Wrapper) -> None:
        blob = unframe(await wrapper.wrap(ROOT_KEY, AAD))[1]
        opened = aws.kms().decrypt(CiphertextBlob=blob, EncryptionContext={"keybearer-root-key": AAD.hex()})
        assert opened["Plaintext"] == ROOT_KEY

    async def test_no_region(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(KmsDenied) as caught:
            await AwsKms(("kbtest",)).wrap(ROOT_KEY, AAD)
        assert "KEYBEARER_AWS_REGION" in caught.value.hint

    async def test_no_credentials(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        with pytest.raises(KmsDenied, match="No AWS credentials"):
            await AwsKms(("kbtest",), region=REGION, endpoint=aws.endpoint).wrap(ROOT_KEY, AAD)


class TestGoogle(ServiceContract):
    @pytest.fixture
    def service(self) -> Iterator[CloudKms]:
        with cloud_kms.running() as running:
            yield running

    @pytest.fixture
    def wrapper(self, service: CloudKms) -> Wrapper:
        return GcpKms((f"{RING}/one",), endpoint=service.endpoint)

    @pytest.fixture
    def same_key(self, service: CloudKms) -> Wrapper:
        return GcpKms((f"{RING}/one",), endpoint=service.endpoint)

    @pytest.fixture
    def other_key(self, service: CloudKms) -> Wrapper:
        return GcpKms((f"{RING}/two",), endpoint=service.endpoint)

    @pytest.fixture
    def next_key(self, service: CloudKms) -> Wrapper:
        return GcpKms((f"{RING}/two", f"{RING}/one"), endpoint=service.endpoint)

    @pytest.fixture
    def denied(self, service: CloudKms) -> Wrapper:
        service.denies = True
        return GcpKms((f"{RING}/one",), endpoint=service.endpoint)

    @pytest.fixture
    def silent(self, service: CloudKms) -> Wrapper:
        service.sleeps = 3
        return GcpKms((f"{RING}/one",), endpoint=service.endpoint, timeout=0.3)

    @pytest.fixture
    def nobody(self, closed: str) -> Wrapper:
        return GcpKms((f"{RING}/one",), endpoint=closed, timeout=2)

    async def test_a_disabled_version(self, service: CloudKms, wrapper: Wrapper) -> None:
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        service.disabled.add(wrapper.reference)
        with pytest.raises(KmsDenied, match="FailedPrecondition") as caught:
            await wrapper.unwrap(wrapped, AAD)
        assert "enabled" in caught.value.hint

    async def test_an_unknown_key(self, service: CloudKms) -> None:
        with pytest.raises(KmsDenied, match="NotFound"):
            await GcpKms((f"{RING}/none",), endpoint=service.endpoint).wrap(ROOT_KEY, AAD)

    async def test_answers_changed_on_the_way(self, service: CloudKms, wrapper: Wrapper) -> None:
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        service.corrupts = True
        with pytest.raises(KmsUnreachable, match="changed on the way"):
            await wrapper.wrap(ROOT_KEY, AAD)
        with pytest.raises(KmsUnreachable, match="changed on the way"):
            await wrapper.unwrap(wrapped, AAD)

    async def test_sums_that_were_lost_on_the_way(self, service: CloudKms, wrapper: Wrapper) -> None:
        service.ignores_sums = True
        with pytest.raises(KmsUnreachable, match="did not check"):
            await wrapper.wrap(ROOT_KEY, AAD)

    @pytest.mark.parametrize(
        ("data", "sum_"),
        [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283)],
    )
    def test_sums_of_rfc_3720(self, data: bytes, sum_: int) -> None:
        assert crc32c(data) == sum_ == cloud_kms.castagnoli(data)


class TestOpenBao(ServiceContract):
    @pytest.fixture
    def wrapper(self, access: Access) -> Wrapper:
        return Transit(access, ("one",))

    @pytest.fixture
    def same_key(self, bao: OpenBao) -> Wrapper:
        """By AppRole, and under another path of the same address."""
        bao.call("PUT", "sys/policies/acl/kbtest-role", {"policy": policy("one")})
        bao.call("POST", "auth/approle/role/kbtest", {"token_policies": ["kbtest-role"]})
        role_id = bao.call("GET", "auth/approle/role/kbtest/role-id")["data"]["role_id"]
        secret_id = bao.call("POST", "auth/approle/role/kbtest/secret-id", {})["data"]["secret_id"]
        return Transit(Access(bao.address, None, role_id, SecretBytes(secret_id.encode())), ("one",), mount="/transit/")

    @pytest.fixture
    def other_key(self, access: Access) -> Wrapper:
        return Transit(access, ("two",))

    @pytest.fixture
    def next_key(self, access: Access) -> Wrapper:
        return Transit(access, ("two", "one"))

    @pytest.fixture
    def denied(self, bao: OpenBao) -> Wrapper:
        return Transit(Access(bao.address, SecretBytes(b"kbtest-secret-token")), ("one",))

    @pytest.fixture
    def silent(self, access: Access, silence: str) -> Wrapper:
        return Transit(Access(silence, access.token), ("one",), timeout=0.3)

    @pytest.fixture
    def nobody(self, access: Access, closed: str) -> Wrapper:
        return Transit(Access(closed, access.token), ("one",))

    async def test_a_turned_transit_key_still_unwraps(self, bao: OpenBao, wrapper: Wrapper) -> None:
        wrapped = await wrapper.wrap(ROOT_KEY, AAD)
        bao.call("POST", "transit/keys/one/rotate", {})
        assert await wrapper.unwrap(wrapped, AAD) == ROOT_KEY

    async def test_a_key_that_does_not_exist(self, bao: OpenBao) -> None:
        token = SecretBytes(bao.token_for(policy("none")).encode())
        gone = Transit(Access(bao.address, token), ("none",))
        for call in (gone.wrap(ROOT_KEY, AAD), gone.unwrap(frame(gone.reference, b"vault:v1:AAAA"), AAD)):
            with pytest.raises(KmsDenied) as caught:
                await call
            assert "exists" in caught.value.hint

    async def test_an_approle_that_is_refused(self, bao: OpenBao) -> None:
        stranger = Transit(Access(bao.address, None, "kbtest-role", SecretBytes(b"kbtest-secret-id")), ("one",))
        with pytest.raises(KmsDenied, match="auth/approle"):
            await stranger.wrap(ROOT_KEY, AAD)

    async def test_sealed(self) -> None:
        with openbao.running() as bao:
            wrapper = Transit(Access(bao.address, SecretBytes(bao.token.encode())), ("one",))
            wrapped = await wrapper.wrap(ROOT_KEY, AAD)
            bao.call("PUT", "sys/seal")
            with pytest.raises(KmsUnreachable) as caught:
                await wrapper.unwrap(wrapped, AAD)
        assert "bao status" in caught.value.hint


def policy(key: str) -> str:
    return "".join(f'path "transit/{operation}/{key}" {{ capabilities = ["update"] }}\n' for operation in ("encrypt", "decrypt"))


class TestSettings:
    """A provider that lacks something says what, and which extra it needs."""

    @pytest.mark.parametrize(
        ("provider", "variable"),
        [
            ("env", "KEYBEARER_ROOT_KEY"),
            ("passphrase", "KEYBEARER_ROOT_KEY_PASSPHRASE"),
            ("aws-kms", "KEYBEARER_AWS_KMS_KEY"),
            ("gcp-kms", "KEYBEARER_GCP_KMS_KEY"),
            ("openbao", "KEYBEARER_OPENBAO_ADDRESS"),
        ],
    )
    def test_what_is_missing_is_named(self, tmp_path: Path, provider: str, variable: str) -> None:
        with pytest.raises(RootKeyError, match=f"{variable}, which is not set") as caught:
            Providers(Options(tmp_path / "root.key"), provider).get(provider)
        assert variable in caught.value.hint

    def test_openbao_needs_a_way_to_sign_in(self, tmp_path: Path) -> None:
        options = Options(tmp_path / "root.key", openbao_address="http://127.0.0.1:1", openbao_keys=("one",))
        with pytest.raises(RootKeyError, match="KEYBEARER_OPENBAO_TOKEN or KEYBEARER_OPENBAO_ROLE_ID"):
            Providers(options, "openbao").get("openbao")

    def test_an_unknown_provider(self, tmp_path: Path) -> None:
        with pytest.raises(RootKeyError, match="no root key provider 'kbtest'"):
            Providers(Options(tmp_path / "root.key"), "file").get("kbtest")

    def test_all_providers_of_the_settings_are_there(self) -> None:
        assert set(NAMES) == {provider.value for provider in config.RootKeyProvider}

    @pytest.mark.parametrize(("extra", "module"), [("aws", "boto3"), ("gcp", "grpc")])
    async def test_an_extra_that_is_not_installed(self, extra: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        wrapper: Any = AwsKms(("kbtest",)) if extra == "aws" else GcpKms(("kbtest",))
        with pytest.raises(OperatorError, match=f"needs {module}") as caught:
            await wrapper.wrap(ROOT_KEY, AAD)
        assert f"keybearer[server,{extra}]" in caught.value.hint

    @pytest.mark.parametrize("name", ["aws_kms_endpoint", "gcp_kms_endpoint", "openbao_address"])
    @pytest.mark.parametrize("value", ["http://bao.example.com:8200", "ftp://127.0.0.1", "bao.example.com", "https://"])
    def test_the_root_key_does_not_travel_in_the_clear(self, name: str, value: str) -> None:
        with pytest.raises(SettingsInvalid, match=name.upper()):
            config.load(**{name: value})

    def test_from_the_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "phrase").write_text(f"{PHRASE}\n")
        monkeypatch.setenv("KEYBEARER_ROOT_KEY_PASSPHRASE_FILE", str(tmp_path / "phrase"))
        monkeypatch.setenv("KEYBEARER_AWS_KMS_KEY", "alias/next, alias/old")
        monkeypatch.setenv("KEYBEARER_OPENBAO_ADDRESS", "https://bao.example.com:8200/")
        monkeypatch.setenv("KEYBEARER_OPENBAO_TOKEN", "kbtest-secret-token")
        settings = config.load(data_dir=tmp_path)
        options = root_keys.options_of(settings)
        assert options.passphrase is not None
        assert options.passphrase.reveal() == PHRASE.encode()
        assert options.aws_keys == ("alias/next", "alias/old")
        assert options.openbao_address == "https://bao.example.com:8200"
        for text in (PHRASE, "kbtest-secret-token"):
            assert text not in f"{settings!r} {options!r}"

    def test_what_is_no_text_is_refused_without_repeating_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = config.load(root_key_passphrase="kbtest \udcff correct horse battery")
        with pytest.raises(SettingsInvalid, match="ROOT_KEY_PASSPHRASE is not UTF-8") as caught:
            root_keys.options_of(settings)
        assert "horse" not in str(caught.value)
        assert caught.value.__context__ is None


class TestFrame:
    @pytest.mark.parametrize(
        "wrapped",
        [b"", b"KBW\x01", b"KBW\x01\x00\x03abc", b"KBW\x01\xff\xffabc", b"KBW\x02\x00\x01ab", b"KBW\x01\x00\x01\xffb", KEY],
    )
    def test_what_nobody_framed(self, wrapped: bytes) -> None:
        with pytest.raises(RootKeyError, match="damaged"):
            unframe(wrapped)

    def test_names_of_any_kind(self) -> None:
        assert unframe(frame("sché/ma", b"x")) == ("sché/ma", b"x")
