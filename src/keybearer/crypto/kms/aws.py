"""The wrapping key at AWS KMS: a symmetric key that never leaves it. Encrypt and Decrypt, bound by an encryption context.

Credentials and region come from where boto3 looks for them: the instance's role, the environment, a profile. The identity needs
``kms:Encrypt`` and ``kms:Decrypt`` on the key, and nothing else.
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

PROVIDER = "aws-kms"

_CONTEXT_NAME = "keybearer-root-key"
_PASSING = frozenset(
    {"DependencyTimeoutException", "KMSInternalException", "InternalFailure", "ServiceUnavailable", "ThrottlingException"}
    | {"KeyUnavailableException", "LimitExceededException", "RequestTimeout"}
)
_NOT_OPENED = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


class AwsKms:
    """A ``Wrapper``. ``keys``: ids, ARNs or aliases; the first wraps, all unwrap. ``timeout``: seconds for one call."""

    provider = PROVIDER

    def __init__(self, keys: tuple[str, ...], *, region: str = "", endpoint: str = "", timeout: float = 10.0) -> None:
        self.reference = keys[0]
        self._keys = keys
        self._region = region
        self._endpoint = endpoint
        self._timeout = timeout
        # At level debug they log whole requests, the unwrapped key among them.
        for name in ("boto3", "botocore", "urllib3"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def __repr__(self) -> str:
        return f"<wrapping key {self.reference} at {self.provider}>"

    async def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap by ``reference``. Raises ``KmsDenied``, ``KmsUnreachable``."""
        answer = await self._call("encrypt", KeyId=self.reference, Plaintext=key, EncryptionContext=_context(aad))
        return frame(self.reference, answer["CiphertextBlob"])

    async def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Unwrap; see ``Wrapper``."""
        reference, blob = unframe(wrapped)
        key = chosen(reference, self._keys)
        try:
            answer = await self._call("decrypt", KeyId=key, CiphertextBlob=blob, EncryptionContext=_context(aad))
        except _NotOpened:
            raise refused(PROVIDER, reference, self._keys) from None
        except KmsDenied:
            if reference not in self._keys:
                raise refused(PROVIDER, reference, self._keys) from None
            raise
        return bytes(answer["Plaintext"])

    async def _call(self, operation: str, **parameters: Any) -> Any:
        def call() -> Any:
            with _translated(self.reference):
                method: Callable[..., Any] = getattr(self._client, operation)
                return method(**parameters)

        return await asyncio.to_thread(call)

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3  # noqa: PLC0415  # the aws extra
            from botocore.config import Config  # noqa: PLC0415  # likewise
        except ImportError as error:
            raise OperatorError(
                f"AWS KMS needs {error.name}, which is not installed.", hint="pip install 'keybearer[server,aws]'"
            ) from None
        limits = Config(connect_timeout=self._timeout, read_timeout=self._timeout, retries={"total_max_attempts": 2})
        return boto3.session.Session().client(
            "kms", region_name=self._region or None, endpoint_url=self._endpoint or None, config=limits
        )


class _NotOpened(Exception):
    """The service says that the ciphertext does not open under this key and context."""


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Turn AWS's exceptions into ours: the one seam. Their messages may repeat parameters, so only their codes are kept."""
    try:
        from botocore.exceptions import (  # noqa: PLC0415  # the aws extra
            BotoCoreError,
            ClientError,
            ConnectionError,  # noqa: A004  # its name
            HTTPClientError,
            NoCredentialsError,
            NoRegionError,
        )
    except ImportError:
        yield  # the client's own import says which extra is missing
        return
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))[:100]
        if code in _NOT_OPENED:
            raise _NotOpened from None
        if code in _PASSING or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400) >= 500:  # noqa: PLR2004  # HTTP
            raise KmsUnreachable(f"AWS KMS cannot use key {key} at the moment: {code}.") from None
        raise KmsDenied(f"AWS KMS refuses to use key {key}: {code}.") from None
    except NoCredentialsError:
        raise KmsDenied("No AWS credentials were found.", hint="Give the server a role, a profile or AWS_… variables.") from None
    except NoRegionError:
        raise KmsDenied("No AWS region is set.", hint="Set KEYBEARER_AWS_REGION.") from None
    except (ConnectionError, HTTPClientError) as error:
        raise KmsUnreachable(f"AWS KMS does not answer: {type(error).__name__}.") from None
    except BotoCoreError as error:
        raise KmsDenied(f"AWS KMS cannot be used: {type(error).__name__}.") from None


def _context(aad: bytes) -> dict[str, str]:
    return {_CONTEXT_NAME: aad.hex()}
