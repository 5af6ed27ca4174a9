"""Archives in S3 buckets, Amazon's or of any server that speaks as S3 does.

They are read like all others. Where botocore is installed (`kinetics-fs[s3]`) and finds credentials, in the places
where all programs for AWS look for them, requests are signed with these; else they are anonymous, for public buckets.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

import requests
from requests.auth import AuthBase

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.archive.reader import TIMEOUT, TRIES, RemoteArchive

if TYPE_CHECKING:
    from botocore.credentials import Credentials

_FIRST_REGION = "us-east-1"
"""For which servers take signatures that know of no regions."""
_REFUSALS = (301, 307, 400, 401, 403)
_MOST_REFUSAL = 4096

_regions: dict[str, str] = {}
"""Of buckets that are in another one than was thought, by their addresses."""


class S3Archive(RemoteArchive):
    """A file in a bucket.

    Args:
        address: `s3://bucket/key`, percent-encoded as a URL is.
        connections: to read all of it with.
        tries: of a request in a row that bring nothing, before it is given up.

    Raises:
        FetchError: there are credentials, but they cannot be used (CONFIG).
    """

    def __init__(self, address: str, *, connections: int = 4, tries: int = TRIES) -> None:
        self._bucket, _, key = address.removeprefix("s3://").partition("/")
        # As S3 encodes it to check a signature: only then is what was signed what arrives.
        self._path = f"{quote(unquote(self._bucket))}/{quote(unquote(key))}"
        super().__init__(self._url(), connections=connections, tries=tries)

    def _get(self, headers: dict[str, str]) -> requests.Response:
        response = self._ask(headers)
        if self._learn_region(response):
            response.close()
            response = self._ask(headers)
        return response

    def _ask(self, headers: dict[str, str]) -> requests.Response:
        credentials = _identity().credentials
        return self._session.get(
            self._url(),
            headers=headers,
            stream=True,
            timeout=TIMEOUT,
            auth=credentials and _Signature(credentials, self._region() or _FIRST_REGION),
            allow_redirects=credentials is None,  # a signature is good for one host
        )

    def _url(self) -> str:
        region = self._region()
        amazon = f"https://s3.{region}.amazonaws.com" if region else "https://s3.amazonaws.com"
        return f"{(_endpoint() or amazon).rstrip('/')}/{self._path}"

    def _region(self) -> str | None:
        return _regions.get(f"{_endpoint()}/{self._bucket}") or _identity().region

    def _learn_region(self, response: requests.Response) -> bool:
        """Whether the answer was that the bucket is in another region."""
        region = response.headers.get("x-amz-bucket-region", "")
        if response.status_code not in (301, 307, 400) or not re.fullmatch("[a-z0-9-]{1,32}", region):
            return False
        if region == (self._region() or _FIRST_REGION):
            return False
        _regions[f"{_endpoint()}/{self._bucket}"] = region
        return True

    def _refusal(self, response: requests.Response) -> FetchError:
        if response.status_code not in _REFUSALS:
            return super()._refusal(response)
        code = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", response.raw.read(_MOST_REFUSAL, decode_content=False))
        said = f"{self.address}: HTTP {response.status_code}" + (f" ({code[1].decode()})" if code else "")
        credentials = _identity().credentials
        if response.status_code in (301, 307) or (code and code[1] == b"AuthorizationHeaderMalformed"):
            advice = "the bucket is in another region, and AWS_REGION must name it"
        elif credentials is not None:
            advice = (
                f"the AWS credentials that were found ({credentials.method}) may not read it; AWS_PROFILE names others"
            )
        elif _botocore_session() is None:
            advice = "no such file, or a private one; to sign requests with AWS credentials, install kinetics-fs[s3]"
        else:
            advice = (
                "no such file, or a private one, and no AWS credentials were found: set AWS_PROFILE to those to use"
            )
        forget()  # whoever mends it need not begin anew
        return FetchError(FailureKind.CONFIG, f"{said}: {advice}")


class _Signature(AuthBase):
    """Signs requests, as S3 asks for (Signature Version 4).

    Signed are the headers that must be. The others may be changed on the way, by a cache that asks for larger ranges.
    """

    def __init__(self, credentials: Credentials, region: str) -> None:
        self._credentials = credentials
        self._region = region

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError

        signed = AWSRequest(request.method, request.url)
        try:
            # Those that expire are renewed here when it is time.
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(signed)
        except BotoCoreError as error:
            raise _unusable(error) from None
        request.headers.update(signed.headers.items())
        return request


class _Identity(NamedTuple):
    """Who we are for S3."""

    credentials: Credentials | None = None
    region: str | None = None
    endpoint: str | None = None


def forget() -> None:
    """Looks for the settings and credentials again when they are next needed, and forgets where buckets are."""
    _identity.cache_clear()
    _botocore_session.cache_clear()
    _regions.clear()


@functools.cache
def _identity() -> _Identity:
    region = os.environ.get("AWS_REGION")
    session = _botocore_session()
    if session is None:
        return _Identity(region=region or os.environ.get("AWS_DEFAULT_REGION"))
    from botocore.exceptions import BotoCoreError

    try:
        return _Identity(
            session.get_credentials(),
            region or session.get_config_variable("region"),
            session.get_scoped_config().get("endpoint_url"),
        )
    except BotoCoreError as error:
        raise _unusable(error) from None


@functools.cache
def _botocore_session() -> Any:
    """The session of botocore; None where it is not installed."""
    try:
        from botocore.session import Session
    except ImportError:
        return None
    logging.getLogger("botocore").setLevel(logging.WARNING)  # below, it logs what it signs: tokens, too
    return Session()


def _endpoint() -> str | None:
    """Another server than Amazon's."""
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return environment or _identity().endpoint


def _unusable(error: Exception) -> FetchError:
    """Says what is wrong with credentials; not in the words of a program that was to print them."""
    from botocore.exceptions import CredentialRetrievalError

    said = type(error).__name__ if isinstance(error, CredentialRetrievalError) else str(error).splitlines()[0][:200]
    return FetchError(FailureKind.CONFIG, f"the AWS credentials cannot be used: {said}")
