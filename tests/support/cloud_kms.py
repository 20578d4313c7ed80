"""Google Cloud KMS as a gRPC server on Google's published messages: checks sums and additional data, and misbehaves on demand.

What it wraps is AES-256-GCM under a key for each key name and version, as the real one does it for symmetric keys.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.cloud import kms_v1

SERVICE = "google.cloud.kms.v1.KeyManagementService"
RING = "projects/kbtest/locations/global/keyRings/kbtest/cryptoKeys"


def castagnoli(data: bytes) -> int:
    """CRC32C by table: another way to it than the client's."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 * (byte & 1))  # noqa: PLW2901  # the table's construction
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@dataclass
class CloudKms:
    """The service's state: set the flags to have it misbehave."""

    endpoint: str = ""
    names: set[str] = field(default_factory=lambda: {f"{RING}/one", f"{RING}/two"})
    calls: int = 0
    denies: bool = False
    sleeps: float = 0.0
    disabled: set[str] = field(default_factory=set)
    corrupts: bool = False
    """Answers are changed on the way."""
    ignores_sums: bool = False
    """It says that it was sent no checksums."""
    _keys: dict[str, bytes] = field(default_factory=dict, repr=False)

    def encrypt(self, request: Any, context: Any) -> Any:
        self._admit(request.name, context)
        if request.plaintext_crc32c != castagnoli(request.plaintext) or (
            request.additional_authenticated_data_crc32c != castagnoli(request.additional_authenticated_data)
        ):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "checksum")
        nonce = os.urandom(12)
        sealed = nonce + self._cipher(request.name).encrypt(nonce, request.plaintext, request.additional_authenticated_data)
        return kms_v1.EncryptResponse(
            name=f"{request.name}/cryptoKeyVersions/1",
            ciphertext=self._sent(sealed),
            ciphertext_crc32c=castagnoli(sealed),
            verified_plaintext_crc32c=not self.ignores_sums,
            verified_additional_authenticated_data_crc32c=not self.ignores_sums,
        )

    def decrypt(self, request: Any, context: Any) -> Any:
        self._admit(request.name, context)
        if request.ciphertext_crc32c != castagnoli(request.ciphertext) or (
            request.additional_authenticated_data_crc32c != castagnoli(request.additional_authenticated_data)
        ):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "checksum")
        nonce, sealed = request.ciphertext[:12], request.ciphertext[12:]
        try:
            plaintext = self._cipher(request.name).decrypt(nonce, sealed, request.additional_authenticated_data)
        except (InvalidTag, ValueError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Decryption failed: verify that 'name' refers to the correct key.")
        return kms_v1.DecryptResponse(plaintext=self._sent(plaintext), plaintext_crc32c=castagnoli(plaintext), used_primary=True)

    def _admit(self, name: str, context: Any) -> None:
        self.calls += 1
        time.sleep(self.sleeps)
        if self.denies:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "kbtest: Permission 'cloudkms…' denied")
        if name not in self.names:
            context.abort(grpc.StatusCode.NOT_FOUND, "CryptoKey not found")
        if name in self.disabled:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"{name}/cryptoKeyVersions/1 is not enabled, current state is: DISABLED."
            )

    def _cipher(self, name: str) -> AESGCM:
        return AESGCM(self._keys.setdefault(name, os.urandom(32)))

    def _sent(self, data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:] if self.corrupts else data


@contextmanager
def running() -> Iterator[CloudKms]:
    """The service on a port of this machine."""
    service = CloudKms()
    server = grpc.server(ThreadPoolExecutor(4))
    handlers = {
        "Encrypt": grpc.unary_unary_rpc_method_handler(
            service.encrypt,
            request_deserializer=kms_v1.EncryptRequest.deserialize,
            response_serializer=kms_v1.EncryptResponse.serialize,
        ),
        "Decrypt": grpc.unary_unary_rpc_method_handler(
            service.decrypt,
            request_deserializer=kms_v1.DecryptRequest.deserialize,
            response_serializer=kms_v1.DecryptResponse.serialize,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    service.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield service
    finally:
        server.stop(None).wait(5)
