"""AWS Secrets Manager. The server's identity needs ``secretsmanager:GetSecretValue`` on what may be pointed to, and nothing else.

Credentials come from where boto3 looks for them: the instance's role, the environment, a profile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from keybearer.domain import SecretBytes
from keybearer.errors import OperatorError, ReferenceDenied, ReferenceMissing, ReferenceUnreachable, ReferenceWrong
from keybearer.vault.references import Reference
from keybearer.vault.stores import MOST_BYTES, picked

_AT_ONCE = 4
"""Threads of its own: a service that hangs must not take those that others, like password hashing, wait for."""
_REGIONS = 16
_MISSING = frozenset({"ResourceNotFoundException", "InvalidRequestException", "InvalidParameterException", "ValidationException"})
_PASSING = frozenset({"InternalServiceError", "InternalFailure", "ServiceUnavailable", "ThrottlingException", "RequestTimeout"})


class SecretsManager:
    """A ``Store``. ``endpoint``: another one than AWS's, for example a VPC's; ``timeout``: seconds for one call."""

    def __init__(self, *, endpoint: str = "", timeout: float = 5.0) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._clients: dict[str, Any] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, "aws-secrets")
        # At level debug they log whole answers, the value among them.
        for name in ("boto3", "botocore", "urllib3"):
            logging.getLogger(name).setLevel(logging.WARNING)

    async def read(self, reference: Reference) -> SecretBytes:
        """What Secrets Manager has in force; see ``Store``."""

        def call() -> Any:
            with _translated(reference):
                return self._client(reference.place).get_secret_value(SecretId=reference.name)

        answer = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        found = answer.get("SecretString", answer.get("SecretBinary"))
        if not isinstance(found, str | bytes) or len(found) > MOST_BYTES:
            raise ReferenceWrong(f"{reference} holds no text, or more than {MOST_BYTES} bytes.")
        return picked(found, reference)

    def _client(self, region: str) -> Any:
        if region not in self._clients:
            try:
                import boto3  # noqa: PLC0415  # the aws extra
                from botocore.config import Config  # noqa: PLC0415  # likewise
            except ImportError as error:
                raise OperatorError(
                    f"AWS Secrets Manager needs {error.name}, which is not installed.", hint="pip install 'keybearer[server,aws]'"
                ) from None
            limits = Config(connect_timeout=self._timeout, read_timeout=self._timeout, retries={"total_max_attempts": 1})
            while len(self._clients) >= _REGIONS:
                self._clients.pop(next(iter(self._clients)), None)
            self._clients[region] = boto3.session.Session().client(
                "secretsmanager", region_name=region, endpoint_url=self._endpoint or None, config=limits
            )
        return self._clients[region]


@contextmanager
def _translated(reference: Reference) -> Iterator[None]:
    """Turn AWS's exceptions into ours: the one seam."""
    try:
        from botocore.exceptions import (  # noqa: PLC0415  # the aws extra
            BotoCoreError,
            ClientError,
            ConnectionError,  # noqa: A004  # its name
            HTTPClientError,
            NoCredentialsError,
        )
    except ImportError:
        yield  # the client's own import says which extra is missing
        return
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))[:100]
        if code in _PASSING or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400) >= 500:  # noqa: PLR2004  # HTTP
            raise ReferenceUnreachable(f"AWS cannot give {reference} at the moment: {code}.") from None
        if code in _MISSING:
            raise ReferenceMissing(f"AWS has nothing at {reference}: {code}.") from None
        hint = "The server's identity needs secretsmanager:GetSecretValue on it, and kms:Decrypt where it has a key of its own."
        raise ReferenceDenied(f"AWS refuses to give {reference}: {code}.", hint=hint) from None
    except NoCredentialsError:
        hint = "Give the server a role, a profile or AWS_… variables."
        raise ReferenceDenied("The server has no AWS credentials.", hint=hint) from None
    except (ConnectionError, HTTPClientError) as error:
        raise ReferenceUnreachable(f"AWS does not answer for {reference}: {type(error).__name__}.") from None
    except BotoCoreError as error:
        raise ReferenceDenied(f"AWS cannot be asked for {reference}: {type(error).__name__}.") from None
