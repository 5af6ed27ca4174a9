"""The user's credentials and settings for S3, from where all AWS programs look for them.

botocore (extra `s3`) knows profiles, roles and programs that print credentials. Without it, only the region and the
endpoint of the environment are known.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from kinetics_fs.errors import SettingError
from kinetics_fs.util.deadline import within

if TYPE_CHECKING:
    from botocore.credentials import Credentials

T = TypeVar("T")

CREDENTIALS_TIMEOUT = 30.0
"""Seconds that credentials may take. If they take longer, they are not asked for again for as long."""

_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._~:\[\]-]+(/[!-~]*)?")

_stuck: tuple[float, str] = 0.0, ""
"""The failure of credentials that took too long, and the monotonic time until which it is valid."""


class AWSSettings(NamedTuple):
    """Credentials and settings of the user.

    Attributes:
        credentials: of botocore, which renews them; None if the user has none.
        region: its name.
        endpoint: address of the S3 server; None for Amazon's.
    """

    credentials: Credentials | None = None
    region: str | None = None
    endpoint: str | None = None


def has_botocore() -> bool:
    """Return whether botocore is installed."""
    return find_spec("botocore") is not None


def find_settings() -> AWSSettings:
    """Return the settings of the environment, and those of the profile that the environment does not have.

    Raises:
        SettingError: the profile, its credentials or the endpoint cannot be used.
    """
    region = os.environ.get("AWS_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if has_botocore():
        found = _ask(lambda: _from_profile(region, endpoint))
    else:
        found = AWSSettings(None, region or os.environ.get("AWS_DEFAULT_REGION"), endpoint)
    if found.endpoint and not _ENDPOINT.fullmatch(found.endpoint):
        raise SettingError(
            "cannot use the S3 server: its address is invalid; set AWS_ENDPOINT_URL to https://HOST:PORT"
        )
    return found


def _from_profile(region: str | None, endpoint: str | None) -> AWSSettings:
    from botocore.session import Session

    logging.getLogger("botocore").setLevel(logging.WARNING)  # at lower levels it logs the tokens that it signs
    session = Session()
    return AWSSettings(
        session.get_credentials(),
        region or session.get_config_variable("region"),
        endpoint or session.get_scoped_config().get("endpoint_url"),
    )


def present_keys(credentials: Credentials) -> Any:
    """Return the access key, the secret key and the token that are valid now.

    Raises:
        SettingError: they cannot be renewed.
    """
    return _ask(credentials.get_frozen_credentials)


def _ask(function: Callable[[], T]) -> T:
    """Return what botocore finds, which may ask a metadata server or run a program of the user."""
    global _stuck
    from botocore.exceptions import BotoCoreError, CredentialRetrievalError

    until, cause = _stuck
    if time.monotonic() >= until:
        try:
            return within(CREDENTIALS_TIMEOUT, function)
        except CredentialRetrievalError as error:
            cause = type(error).__name__  # its text has the output of the program that should print the credentials
        except BotoCoreError as error:
            cause = str(error).splitlines()[0][:200]
        except TimeoutError as error:
            cause = str(error)
            _stuck = time.monotonic() + CREDENTIALS_TIMEOUT, cause
    raise SettingError(f"cannot use the AWS credentials: {cause}; correct AWS_PROFILE or the profile") from None


def forget() -> None:
    """Ask for credentials again even if they have just taken too long."""
    global _stuck
    _stuck = 0.0, ""
