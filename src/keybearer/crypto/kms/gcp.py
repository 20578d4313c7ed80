"""The wrapping key at Google Cloud KMS: a symmetric key that never leaves it. Encrypt and Decrypt with additional data.

Both sides check CRC32C sums of all that is sent, as Google's "Data integrity guidelines" ask for: a bit that flips on the way would
otherwise be found when the root key is needed next. Credentials are Google's default ones. The identity needs
``cloudkms.cryptoKeyVersions.useToEncrypt`` and ``useToDecrypt``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from keybearer.crypto.kms.wrapped import chosen, frame, refused, unframe
from keybearer.errors import KmsDenied, KmsUnreachable, OperatorError

PROVIDER = "gcp-kms"

_CORRUPT = "An answer of Google Cloud KMS was changed on the way: its checksum is wrong."
_POLYNOMIAL = 0x82F63B78


class GcpKms:
    """A ``Wrapper``. ``keys``: resource names (projects/…/cryptoKeys/…); the first wraps, all unwrap. ``timeout``: seconds.

    ``endpoint``: another one than Google's; ``http://`` is for an emulator on this machine, without TLS and credentials.
    """

    provider = PROVIDER

    def __init__(self, keys: tuple[str, ...], *, endpoint: str = "", timeout: float = 10.0) -> None:
        self.reference = keys[0]
        self._keys = keys
        self._endpoint = endpoint
        self._timeout = timeout
        # At level debug it logs whole requests, the unwrapped key among them.
        logging.getLogger("google").setLevel(logging.WARNING)

    def __repr__(self) -> str:
        return f"<wrapping key {self.reference} at {self.provider}>"

    async def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap by ``reference``. Raises ``KmsDenied``, ``KmsUnreachable``."""
        answer = await self._call(
            "encrypt",
            {
                "name": self.reference,
                "plaintext": key,
                "plaintext_crc32c": crc32c(key),
                "additional_authenticated_data": aad,
                "additional_authenticated_data_crc32c": crc32c(aad),
            },
        )
        if not (answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c):
            raise KmsUnreachable("Google Cloud KMS did not check what it was sent.")
        if not answer.name.startswith(f"{self.reference}/") or answer.ciphertext_crc32c != crc32c(answer.ciphertext):
            raise KmsUnreachable(_CORRUPT)
        return frame(self.reference, answer.ciphertext)

    async def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Unwrap; see ``Wrapper``."""
        reference, blob = unframe(wrapped)
        try:
            answer = await self._call(
                "decrypt",
                {
                    "name": chosen(reference, self._keys),
                    "ciphertext": blob,
                    "ciphertext_crc32c": crc32c(blob),
                    "additional_authenticated_data": aad,
                    "additional_authenticated_data_crc32c": crc32c(aad),
                },
            )
        except _NotOpened:
            raise refused(PROVIDER, reference, self._keys) from None
        if answer.plaintext_crc32c != crc32c(answer.plaintext):
            raise KmsUnreachable(_CORRUPT)
        return bytes(answer.plaintext)

    async def _call(self, operation: str, request: dict[str, Any]) -> Any:
        def call() -> Any:
            with _translated(str(request["name"]), operation):
                method: Callable[..., Any] = getattr(self._client, operation)
                # A loaded extra's own retries would go on for a minute: whoever started this process may start it again.
                return method(request=request, timeout=self._timeout, retry=None)

        return await asyncio.to_thread(call)

    @cached_property
    def _client(self) -> Any:
        try:
            import grpc  # noqa: PLC0415  # the gcp extra
            from google.api_core.client_options import ClientOptions  # noqa: PLC0415  # likewise
            from google.cloud import kms_v1  # noqa: PLC0415  # likewise
            from google.cloud.kms_v1.services.key_management_service.transports import (  # noqa: PLC0415  # likewise
                KeyManagementServiceGrpcTransport,
            )
        except ImportError as error:
            raise OperatorError(
                f"Google Cloud KMS needs {error.name}, which is not installed.", hint="pip install 'keybearer[server,gcp]'"
            ) from None
        if self._endpoint.startswith("http://"):
            channel = grpc.insecure_channel(self._endpoint.removeprefix("http://").rstrip("/"))
            return kms_v1.KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=channel))
        options = ClientOptions(api_endpoint=self._endpoint.removeprefix("https://").rstrip("/") or None)
        return kms_v1.KeyManagementServiceClient(client_options=options)


class _NotOpened(Exception):
    """The service says that the ciphertext does not open under this key and additional data."""


@contextmanager
def _translated(key: str, operation: str) -> Iterator[None]:
    """Turn Google's exceptions into ours: the one seam. Their messages may repeat parameters, so only their kinds are kept."""
    try:
        from google.api_core import exceptions as api  # noqa: PLC0415  # the gcp extra
        from google.auth import exceptions as auth  # noqa: PLC0415  # likewise
    except ImportError:
        yield  # the client's own import says which extra is missing
        return
    try:
        yield
    except api.InvalidArgument:
        if operation == "decrypt":
            raise _NotOpened from None
        raise KmsDenied(f"Google Cloud KMS refuses to use key {key}: InvalidArgument.") from None
    except (api.PermissionDenied, api.Unauthenticated, api.NotFound, api.FailedPrecondition) as error:
        raise KmsDenied(f"Google Cloud KMS refuses to use key {key}: {type(error).__name__}.") from None
    except (api.GoogleAPICallError, api.RetryError) as error:
        raise KmsUnreachable(f"Google Cloud KMS does not answer: {type(error).__name__}.") from None
    except auth.TransportError:
        raise KmsUnreachable("Google's sign-in does not answer.") from None
    except auth.GoogleAuthError:
        raise KmsDenied(
            "No Google credentials were found.", hint="Give the server a service account, or set GOOGLE_APPLICATION_CREDENTIALS."
        ) from None


def crc32c(data: bytes) -> int:
    """Return the CRC32C (Castagnoli, RFC 3720 appendix B.4) of a few bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
