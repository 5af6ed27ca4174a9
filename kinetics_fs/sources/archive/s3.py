"""Archives in S3 buckets, on Amazon's servers or any that implement the same protocol.

Requests are signed if botocore is installed (`kinetics-fs[s3]`) and finds credentials where all AWS programs look for
them. Otherwise they are anonymous, as public buckets allow.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote

from kinetics_fs.errors import FailureKind, FetchError, SettingError
from kinetics_fs.sources.archive.remote import TRIES, RemoteArchive
from kinetics_fs.util import aws
from kinetics_fs.util.aws import AWSSettings
from kinetics_fs.util.deadline import Deadline

if TYPE_CHECKING:
    import requests
    from botocore.credentials import Credentials

T = TypeVar("T")

_DEFAULT_REGION = "us-east-1"
"""Region that signatures name if none is configured. Servers without regions accept it."""
_REFUSAL_STATUSES = (301, 307, 400, 401, 403)
_MAX_REFUSAL = 4096
"""Bytes of an error document to read."""

_regions: dict[str, str] = {}
"""Regions that servers named for their buckets, by endpoint and bucket."""


class S3Archive(RemoteArchive):
    """A file in a bucket.

    Args:
        address: `s3://bucket/key`, percent-encoded as a URL is.
        connections: number of connections with which the whole archive is read.
        tries: number of tries in a row without progress after which a request fails.

    Raises:
        FetchError: credentials exist, but cannot be used (CONFIG).
    """

    def __init__(self, address: str, *, connections: int = 4, tries: int = TRIES) -> None:
        self._bucket, _, key = address.removeprefix("s3://").partition("/")
        # Encoded as S3 does when it checks a signature; otherwise the signature does not match.
        self._path = f"{quote(unquote(self._bucket))}/{quote(unquote(key))}"
        super().__init__(self._make_url(), connections=connections, tries=tries)

    def _get(self, headers: dict[str, str], deadline: Deadline) -> requests.Response:
        response = self._send(headers, deadline)
        if self._learn_region(response):
            response.close()
            response = self._send(headers, deadline)
        return response

    def _send(self, headers: dict[str, str], deadline: Deadline) -> requests.Response:
        credentials = _aws_settings().credentials
        return self._session.request(
            "GET",
            self._make_url(),
            deadline,
            headers=headers,
            auth=credentials and functools.partial(_sign, credentials, self._region() or _DEFAULT_REGION),
            allow_redirects=credentials is None,  # a signature is valid for one host only
        )

    def _make_url(self) -> str:
        region = self._region()
        amazon = f"https://s3.{region}.amazonaws.com" if region else "https://s3.amazonaws.com"
        return f"{(_aws_settings().endpoint or amazon).rstrip('/')}/{self._path}"

    def _region(self) -> str | None:
        return _regions.get(f"{_aws_settings().endpoint}/{self._bucket}") or _aws_settings().region

    def _learn_region(self, response: requests.Response) -> bool:
        """Remember the region of the bucket if a response names another one. Return whether it does."""
        region = response.headers.get("x-amz-bucket-region", "")
        if response.status_code not in (301, 307, 400) or not re.fullmatch("[a-z0-9-]{1,32}", region):
            return False
        if region == (self._region() or _DEFAULT_REGION):
            return False
        _regions[f"{_aws_settings().endpoint}/{self._bucket}"] = region
        return True

    def _refusal(self, response: requests.Response) -> FetchError:
        if response.status_code not in _REFUSAL_STATUSES:
            return super()._refusal(response)
        code = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", response.raw.read(_MAX_REFUSAL, decode_content=False))
        refused = f"HTTP {response.status_code}" + (f" ({code[1].decode()})" if code else "")
        credentials = _aws_settings().credentials
        if response.status_code in (301, 307) or (code and code[1] == b"AuthorizationHeaderMalformed"):
            advice = "the bucket is in another region; set AWS_REGION to it"
        elif credentials is not None:
            advice = f"the AWS credentials in use ({credentials.method}) do not allow it; set AWS_PROFILE to others"
        elif not aws.has_botocore():
            advice = "the file does not exist or is private; install kinetics-fs[s3] to sign with AWS credentials"
        else:
            advice = "the file does not exist, or is private and there are no AWS credentials; set AWS_PROFILE"
        forget()  # a correction takes effect without a restart
        return FetchError(FailureKind.CONFIG, f"cannot read {self.address}: {refused}; {advice}")


def _sign(credentials: Credentials, region: str, request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Sign a request with AWS Signature Version 4.

    Only the mandatory headers are signed, because a proxy cache may change the others to request larger ranges.
    """
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    signed = AWSRequest(request.method, request.url)
    keys = _checked(lambda: aws.present_keys(credentials))
    S3SigV4Auth(keys, "s3", region).add_auth(signed)
    request.headers.update(signed.headers.items())
    return request


def settings_as_json() -> dict[str, str | None]:
    """Return the settings and the present credentials as values for JSON, for `use`.

    Raises:
        FetchError: credentials exist, but cannot be used (CONFIG).
    """
    settings = _aws_settings()
    found: dict[str, str | None] = dict.fromkeys(("access_key", "secret_key", "token", "method"))
    if (credentials := settings.credentials) is not None:
        keys = _checked(lambda: aws.present_keys(credentials))
        found = {
            "access_key": keys.access_key,
            "secret_key": keys.secret_key,
            "token": keys.token,
            "method": credentials.method,
        }
    return {**found, "region": settings.region, "endpoint": settings.endpoint}


def use(settings: dict[str, str | None]) -> None:
    """Use settings and credentials of another process, and look for no others."""
    global _given
    credentials = None
    if settings["access_key"]:
        from botocore.credentials import Credentials

        credentials = Credentials(settings["access_key"], settings["secret_key"], settings["token"], settings["method"])
    _given = AWSSettings(credentials, settings["region"], settings["endpoint"])


def forget() -> None:
    """Forget settings, credentials and regions, so that the next request looks them up again."""
    aws.forget()
    _found_settings.cache_clear()
    _regions.clear()


_given: AWSSettings | None = None
"""The settings of `use`."""


def _aws_settings() -> AWSSettings:
    return _given or _found_settings()


@functools.cache
def _found_settings() -> AWSSettings:
    return _checked(aws.find_settings)


def _checked(function: Callable[[], T]) -> T:
    """Return the result of a function that looks for settings.

    Raises:
        FetchError: they cannot be used (CONFIG).
    """
    try:
        return function()
    except SettingError as error:
        raise FetchError(FailureKind.CONFIG, str(error)) from None
