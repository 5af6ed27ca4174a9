"""A shared store in a bucket of Amazon S3 or a server with its protocol, Google Cloud Storage or Azure, by obstore.

Conditional writes are the only means by which machines exclude each other: `If-None-Match: *` creates an object,
`If-Match` with an ETag replaces it (on Google's storage, generations do both).

Credentials and endpoints come from where the programs of each cloud look for them: environment variables, roles of
instances and containers, web identity. Profiles of AWS need botocore (extra `s3`). All are renewed before they expire.
"""

from __future__ import annotations

import datetime
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from kinetics_fs.errors import FailureKind, SettingError, printable
from kinetics_fs.shared.backend import (
    MAX_METADATA,
    AccessRefused,
    Conflict,
    ListedObject,
    ObjectDamaged,
    ObjectInfo,
    StoredObject,
    StoreUnreachable,
    Version,
    check_key,
    is_key,
    is_record,
)
from kinetics_fs.util import aws

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode, UpdateVersion
    from obstore.store import ClientConfig, RetryConfig, S3Credential

_Result = TypeVar("_Result")

SCHEMES = ("s3", "gs", "az")
"""Schemes of the addresses of buckets."""

_RECORD_TIMEOUT = 10.0
"""Seconds for one request for a record. A request that is repeated takes up to twice as long."""
_FILE_TIMEOUT = 60.0
"""The same for a file."""
_RETRY_TIMEOUT = 10.0
"""Seconds after which a request is not repeated any more; half of it to connect. An open waits for it once, if the
network loses all packets."""
_RETRIES = 4
"""Repetitions of a request that the server could not serve (5xx), or whose answer was lost."""
_CONFLICT_TRIES = 4
"""Tries of a write that the server rejects because another one on the same key is in progress (409)."""
_CREDENTIALS_TTL = datetime.timedelta(minutes=1)
"""How long credentials from botocore are used until it is asked again. It renews them 10 minutes before they expire."""

_STATUS = re.compile(r"status code: (\d{3})")
_PATH = re.compile(r'parsing Path "(.*?)": ', re.DOTALL)
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
_NOT_DELETED = re.compile(r"DeleteObjects request failed .*\(code: ([A-Za-z]{1,64})\)")
"""The error of obstore if a request to delete many objects (status 200) names those that were not deleted."""
_TRANSIENT_STATUSES = {408, 429}
_TRANSIENT_CODES = {"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout"}
_FULL_STATUS = 507
_FULL_CODES = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull"}
_MISSING_CONTAINERS = {"NoSuchBucket", "ContainerNotFound"}


class BucketBackend:
    """A bucket as a store. See `kinetics_fs.shared.backend.Backend`.

    Args:
        address: `s3://BUCKET/PREFIX`, or the same with `gs` or `az`.
        record_timeout: seconds for one request for a record.
        file_timeout: seconds for one request for a file.

    Raises:
        SettingError: the address is invalid, or obstore is not installed.
    """

    is_listed_cheaply = True

    def __init__(
        self, address: str, *, record_timeout: float = _RECORD_TIMEOUT, file_timeout: float = _FILE_TIMEOUT
    ) -> None:
        parts = urlsplit(address)
        prefix = parts.path.strip("/")
        if parts.scheme not in SCHEMES or not re.fullmatch(r"[A-Za-z0-9._-]+", parts.netloc) or parts.query:
            raise SettingError(f"cannot use the shared store {address}: no bucket; write s3://BUCKET/PREFIX")
        if prefix:
            _check_prefix(prefix, address)
        self.address = f"{parts.scheme}://{parts.netloc}" + (f"/{prefix}" if prefix else "")
        try:
            import obstore
        except ImportError:
            raise SettingError(
                f"cannot use the shared store {self.address}: obstore is not installed; install kinetics-fs[shared]"
            ) from None
        self._obstore = obstore
        self._records = _open_store(parts.scheme, parts.netloc, prefix, record_timeout)
        self._files = _open_store(parts.scheme, parts.netloc, prefix, file_timeout)
        self._reads = _open_store(parts.scheme, parts.netloc, prefix, file_timeout, stall_timeout=record_timeout)

    def _store(self, key: str) -> Any:
        return self._records if is_record(key) else self._files

    def get(self, key: str, *, max_size: int) -> StoredObject | None:
        """See `Backend.get`."""

        def run() -> StoredObject:
            store = self._records if is_record(key) else self._reads
            result = self._obstore.get(store, check_key(key))
            info = _info(result.meta, {name: str(value) for name, value in result.attributes.items()})
            if info.size > max_size:
                raise ObjectDamaged(
                    f"cannot read {self.address}/{key}: it has {info.size:,} bytes, more than {max_size:,}",
                    info.version,
                )
            return StoredObject(bytes(result.bytes()), info)

        return self._call("read", key, run)

    def stat(self, key: str) -> ObjectInfo | None:
        """See `Backend.stat`."""
        return self._call("read", key, lambda: _info(self._obstore.head(self._store(key), check_key(key)), {}))

    def create(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> Version:
        """See `Backend.create`."""
        return self._put(key, body, metadata, "create")

    def replace(self, key: str, body: bytes, version: Version, metadata: Mapping[str, str] | None = None) -> Version:
        """See `Backend.replace`."""
        update: UpdateVersion = {"e_tag": version.tag}
        if version.number:
            update["version"] = version.number
        return self._put(key, body, metadata, update)

    def _put(self, key: str, body: bytes, metadata: Mapping[str, str] | None, mode: PutMode) -> Version:
        if len(json.dumps(dict(metadata or {}))) > MAX_METADATA:
            raise ValueError(f"the metadata has more than {MAX_METADATA} bytes")
        content_type = {"Content-Type": "application/json" if is_record(key) else "application/octet-stream"}

        def run() -> Version:
            result = self._obstore.put(
                self._store(key), check_key(key), body, attributes={**content_type, **(metadata or {})}, mode=mode
            )
            return Version(result["e_tag"] or "", result["version"] or "")

        for attempt in range(_CONFLICT_TRIES):
            written = self._call("write", key, run, is_last=attempt + 1 == _CONFLICT_TRIES)
            if written is not None:
                return written
            time.sleep(0.1 * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")

    def delete(self, *keys: str) -> None:
        """See `Backend.delete`. One request deletes 1,000 objects."""
        if keys:
            self._call("delete", keys[0], lambda: self._obstore.delete(self._records, [check_key(key) for key in keys]))

    def top_names(self) -> set[str]:
        """See `Backend.top_names`. Reads one page."""
        pages = self._obstore.list(self._records, chunk_size=1000)
        page = self._call("list", "", lambda: next(pages, None)) or []
        return {meta["path"].partition("/")[0] for meta in page} - {""}  # the object that a console makes for a folder

    def scan(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:
        """See `Backend.scan`. Pages have 1,000 objects."""
        check_key(prefix)
        pages = self._obstore.list(self._records, prefix, offset=after or None, chunk_size=1000)
        while (page := self._call("list", prefix, lambda: next(pages, None))) is not None:
            for meta in filter(lambda meta: is_key(meta["path"]), page):
                yield ListedObject(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def _call(self, verb: str, key: str, function: Callable[[], _Result], *, is_last: bool = True) -> _Result | None:
        """Send a request.

        Args:
            verb: for messages.
            key: for messages.
            function: sends the request.
            is_last: do not return None because of a conflict with a request in progress.

        Returns:
            The result; None if there is no such object, or if another request on the key is in progress.
        """
        from obstore.exceptions import BaseError

        try:
            return function()
        except FileNotFoundError as error:
            code = _CODE.search(str(error))
            if code and code[1] in _MISSING_CONTAINERS:
                raise AccessRefused(
                    f"cannot {verb} {self.address}/{key}: there is no such bucket; create it or correct the address"
                ) from None
            if verb == "write":
                raise Conflict from None  # replaced, but it does not exist
            return None
        except BaseError as error:
            raised = self._translated(error, verb, key)
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            # The library gives up on text that no HTTP request can have, such as a key with a line end.
            raised = AccessRefused(f"cannot {verb} {self.address}/{key}: invalid settings; correct the environment")
        if isinstance(raised, _Busy):
            if not is_last:
                return None
            raised = StoreUnreachable(f"cannot {verb} {self.address}/{key}: other requests conflict with it")
        raise raised from None  # the original names headers and the request

    def _translated(self, error: Exception, verb: str, key: str) -> Exception:
        from obstore import exceptions

        text = str(error)
        found, coded = _STATUS.search(text), _CODE.search(text)
        status, code = int(found[1]) if found else 0, coded[1] if coded else ""
        where = f"cannot {verb} {self.address}/{key}".rstrip("/")
        if isinstance(error, exceptions.InvalidPathError):
            named = _PATH.search(text)
            name = printable(named[1][:200]) if named else ""
            return ObjectDamaged(f"{where}: an object there has an invalid name ({name}); remove it")
        answer = f"HTTP {status}" + (f" ({code})" if code else "")
        if (refused := _NOT_DELETED.search(text)) and refused[1] not in _TRANSIENT_CODES:
            return AccessRefused(f"{where}: {refused[1]}; allow to delete objects")
        if status == 409 and code != "OperationNotPermitted":
            # Amazon's answer if another write or delete is in progress; nothing is known about the object.
            return _Busy()
        if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
            return Conflict()
        if code in _FULL_CODES or status == _FULL_STATUS:
            return AccessRefused(f"{where}: {answer}; free space or raise the quota", FailureKind.LOCAL)
        if isinstance(error, exceptions.UnauthenticatedError) and not status:
            return AccessRefused(f"{where}: no valid credentials; check the environment")
        if code == "AuthorizationHeaderMalformed" or "redirect" in text:
            return AccessRefused(f"{where}: the bucket is in another region; set AWS_REGION to it")
        if 400 <= status < 500 and status not in _TRANSIENT_STATUSES:
            # Amazon answers 403 for an object that does not exist to a client that may not list the bucket.
            return AccessRefused(f"{where}: {answer}; check the credentials, and allow to list the bucket")
        if status == 501:
            return AccessRefused(f"{where}: {answer}; the server lacks conditional writes: use another one")
        return StoreUnreachable(f"{where}: {answer if status else 'no answer'}")


class _Busy(Exception):
    """Another write or delete of the same key is in progress."""


def _check_prefix(prefix: str, address: str) -> None:
    try:
        check_key(prefix)
    except ValueError:
        raise SettingError(
            f"cannot use the shared store {address}: invalid prefix; use letters, digits, '-', '_', '.' and '/'"
        ) from None


def _info(meta: ObjectMeta, metadata: Mapping[str, str]) -> ObjectInfo:
    version = Version(meta["e_tag"] or "", meta["version"] or "")
    return ObjectInfo(meta["size"], meta["last_modified"].timestamp(), version, metadata)


def _open_store(scheme: str, bucket: str, prefix: str, timeout: float, *, stall_timeout: float | None = None) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    seconds, retry = (datetime.timedelta(seconds=value) for value in (timeout, min(timeout, _RETRY_TIMEOUT)))
    retry_config: RetryConfig = {"max_retries": _RETRIES, "retry_timeout": retry}
    # Without encryption only where an endpoint asks for it by its http:// address.
    client_options: ClientConfig = {"timeout": seconds, "connect_timeout": retry / 2, "allow_http": True}
    if stall_timeout is not None:
        # Without this, a connection that is used again waits for as long as the whole body may take.
        client_options["read_timeout"] = datetime.timedelta(seconds=stall_timeout)
    settings = _aws_settings() if scheme == "s3" else {}
    opened: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    try:
        return opened(
            bucket, prefix=prefix or None, client_options=client_options, retry_config=retry_config, **settings
        )
    except (BaseError, ValueError) as error:
        cause = type(error).__name__  # its text may have a key
        raise SettingError(
            f"cannot use the shared store {scheme}://{bucket}: invalid settings of the cloud ({cause});"
            " correct the environment"
        ) from None


def _aws_settings() -> dict[str, Any]:
    """Return the settings of the user's environment and profile.

    Raises:
        SettingError: they cannot be used.
    """
    found = aws.find_settings()

    def renewed() -> S3Credential:
        keys = aws.present_keys(found.credentials)
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.datetime.now(datetime.UTC) + _CREDENTIALS_TTL,
        }

    settings: dict[str, Any] = {"region": found.region, "endpoint": found.endpoint}
    if found.credentials is not None:
        settings["credential_provider"] = renewed
    elif aws.has_botocore():
        settings["skip_signature"] = True  # obstore would wait for a metadata server at every request
    return {name: value for name, value in settings.items() if value is not None}
