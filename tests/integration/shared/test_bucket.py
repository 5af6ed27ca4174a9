"""The bucket backend: refusals, faults of the server, lost answers, settings, and no secrets in messages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from kinetics_fs.errors import FailureKind, SettingError
from kinetics_fs.shared import bucket
from kinetics_fs.shared.backend import AccessRefused, Conflict, ObjectDamaged, StoreUnreachable
from kinetics_fs.shared.bucket import BucketBackend
from kinetics_fs.shared.records import Records
from kinetics_fs.shared.store import SharedStore
from tests.support.s3_proxy import Fault, S3Proxy, s3_proxy
from tests.support.servers import Keys, Moto

RECORD = "leases/a/b.json"
FILE = "clips/v1/source/3f/a.mp4"
SECRET = "SECRETsecretSECRET"


@pytest.fixture
def proxy(serve: Moto, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    with s3_proxy(serve.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield proxy


@pytest.fixture
def backend(proxy: S3Proxy, bucket_url: str) -> BucketBackend:
    return BucketBackend(bucket_url, record_timeout=2, file_timeout=2)


def body(backend: BucketBackend, key: str) -> bytes | None:
    found = backend.get(key, max_size=1000)
    return found and found.body


def test_a_hit_is_one_request(backend: BucketBackend, proxy: S3Proxy) -> None:
    backend.create(FILE, b"clip", {"sha256": "x"})
    proxy.requests.clear()
    assert body(backend, FILE) == b"clip"
    assert proxy.requests.total() == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", FailureKind.CREDENTIALS),
        (403, "", FailureKind.CREDENTIALS),
        (401, "", FailureKind.CREDENTIALS),
        (400, "ExpiredToken", FailureKind.CREDENTIALS),
        (400, "InvalidToken", FailureKind.CREDENTIALS),
        (403, "RequestTimeTooSkewed", FailureKind.CREDENTIALS),
        (403, "QuotaExceeded", FailureKind.LOCAL),
        (507, "", FailureKind.LOCAL),
        (501, "NotImplemented", FailureKind.CREDENTIALS),
        (400, "AuthorizationHeaderMalformed", FailureKind.CREDENTIALS),
        (301, "PermanentRedirect", FailureKind.CREDENTIALS),
        (404, "NoSuchBucket", FailureKind.CREDENTIALS),
    ],
)
def test_a_refusal_is_a_refusal(
    backend: BucketBackend, proxy: S3Proxy, status: int, code: str, kind: FailureKind
) -> None:
    proxy.fault = lambda method, path: Fault(status, code)
    for call in (
        lambda: backend.get(RECORD, max_size=10),
        lambda: backend.create(RECORD, b"1"),
        lambda: list(backend.scan("leases")),
    ):
        with pytest.raises(AccessRefused, match=r"cannot (read|write|list) s3://.*; ") as caught:
            call()
        assert caught.value.kind is kind
        assert status in (301, 404) or code in str(caught.value) or "set AWS_REGION" in str(caught.value)
        assert SECRET not in str(caught.value) and "http" not in str(caught.value).lower().replace(
            "http 4", ""
        ).replace("http 5", "")


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 429])
def test_a_server_with_a_fault_is_unreachable_and_then_back(
    backend: BucketBackend, proxy: S3Proxy, status: int
) -> None:
    proxy.fault = lambda method, path: Fault(status, "SlowDown")
    for call in (lambda: body(backend, RECORD), lambda: backend.create(RECORD, b"1"), lambda: backend.stat(RECORD)):
        with pytest.raises(StoreUnreachable, match=f"HTTP {status}"):
            call()
    proxy.fault = lambda method, path: None
    proxy.faults.append(Fault(503, "SlowDown"))
    backend.create(RECORD, b"1")
    assert body(backend, RECORD) == b"1"


def test_no_answer_is_unreachable_within_the_timeout(backend: BucketBackend, proxy: S3Proxy) -> None:
    proxy.fault = lambda method, path: Fault(waits=True)
    for call in (lambda: backend.create(RECORD, b"1"), lambda: body(backend, RECORD)):
        began = time.monotonic()
        with pytest.raises(StoreUnreachable, match="no answer"):
            call()
        assert time.monotonic() - began < 20
    proxy.close()
    with pytest.raises(StoreUnreachable):
        body(backend, RECORD)


def test_a_conflict_with_a_request_in_progress_is_repeated(backend: BucketBackend, proxy: S3Proxy) -> None:
    busy = Fault(409, "ConditionalRequestConflict")
    proxy.faults.extend([busy, busy])
    version = backend.create(RECORD, b"1")
    proxy.faults.extend([busy, busy])
    backend.replace(RECORD, b"2", version)
    assert body(backend, RECORD) == b"2"
    proxy.fault = lambda method, path: busy
    with pytest.raises(StoreUnreachable, match="other requests conflict"):
        backend.create(FILE, b"1", {})


def test_a_create_whose_answer_was_lost_is_a_conflict_with_itself(backend: BucketBackend, proxy: S3Proxy) -> None:
    """The library repeats the request after a 5xx: the records know by their nonce."""
    records = Records(backend)
    path = None

    def answer(method: str, where: str) -> Fault | None:
        nonlocal path
        if method == "PUT" and path is None:
            path = where
            return Fault(loses_answer=True)
        return None

    proxy.fault = answer
    record = records.create(RECORD, {"owner": "this machine"})
    assert record is not None
    found = records.read(RECORD)
    assert found is not None and found.nonce == record.nonce


@pytest.mark.parametrize("number", [1, 2])
def test_the_probe_is_right_although_an_answer_is_lost(backend: BucketBackend, proxy: S3Proxy, number: int) -> None:
    puts = 0

    def lose(method: str, path: str) -> Fault | None:
        nonlocal puts
        puts += method == "PUT"
        return Fault(loses_answer=True) if method == "PUT" and puts == number else None

    proxy.fault = lose
    assert SharedStore(backend).probe() == (True, True, "")
    assert puts > number


def test_a_body_that_ends_early_is_never_returned(backend: BucketBackend, proxy: S3Proxy) -> None:
    backend.create(FILE, b"clip" * 100, {})
    proxy.faults.append(Fault(keeps=100))
    try:
        assert body(backend, FILE) == b"clip" * 100  # repeated from where it ended
    except StoreUnreachable:
        assert body(backend, FILE) == b"clip" * 100


def test_a_huge_object_is_not_downloaded(backend: BucketBackend, proxy: S3Proxy) -> None:
    backend.create(FILE, b"x" * 5_000_000, {})
    with pytest.raises(ObjectDamaged, match="5,000,000 bytes, more than 1,000"):
        body(backend, FILE)


def test_a_reader_without_permission_to_write_can_read(
    serve: Moto, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    SharedStore(BucketBackend(bucket_url)).open(create=True)
    keys = serve.user(f"reader-{time.time_ns()}", "s3:Get*")
    serve.check(signatures=True)
    try:
        use(monkeypatch, keys)
        store = SharedStore(BucketBackend(bucket_url))
        assert store.open(create=False)
        found = store.probe()
        assert (found.can_write, found.has_conditional_writes) == (False, False)
        assert "HTTP 403 (AccessDenied)" in found.reason

        use(monkeypatch, Keys(keys.key, SECRET))
        with pytest.raises(AccessRefused, match="SignatureDoesNotMatch") as caught:
            SharedStore(BucketBackend(bucket_url)).open(create=False)
        assert SECRET not in str(caught.value) and keys.key not in str(caught.value)
    finally:
        serve.check(signatures=False)


def test_a_writer_that_may_not_delete_can_write(serve: Moto, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = serve.user(f"writer-{time.time_ns()}", ["s3:Get*", "s3:PutObject", "s3:List*"])
    serve.check(signatures=True)
    try:
        use(monkeypatch, keys)
        store = SharedStore(BucketBackend(bucket_url))
        assert store.open(create=True)
        assert store.probe() == (True, True, "")
    finally:
        serve.check(signatures=False)


def use(monkeypatch: pytest.MonkeyPatch, keys: Keys) -> None:
    for variable, value in keys.environment().items():
        monkeypatch.setenv(variable, value)


def test_a_profile_has_credentials_and_they_are_renewed(
    serve: Moto, bucket_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("aws")
    script = folder / "keys"
    log = folder / "asked"
    script.write_text(
        "#!/bin/sh\n"
        f"echo asked >> {log}\n"
        f'echo \'{{"Version": 1, "AccessKeyId": "{serve.admin.key}", "SecretAccessKey": "{serve.admin.secret}",\'\n'
        'echo "\\"SessionToken\\": \\"x\\", \\"Expiration\\": \\"$(date -u -d "+5 seconds" +%Y-%m-%dT%H:%M:%SZ)\\"}"\n'
    )
    script.chmod(0o700)
    (folder / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {serve.url}\ncredential_process = {script}\n"
    )
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")

    monkeypatch.setattr(bucket, "_CREDENTIALS_TTL", timedelta(0))

    backend = BucketBackend(bucket_url)
    backend.create(RECORD, b"1")
    asked = log.read_text().count("asked")
    for _ in range(3):
        assert body(backend, RECORD) == b"1"
    assert log.read_text().count("asked") > asked


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://", "no bucket"),
        ("s3:///key", "no bucket"),
        ("http://bucket/x", "no bucket"),
        ("s3://bucket/../x", "invalid prefix"),
        ("s3://bucket/a b", "invalid prefix"),
        ("s3://key:secret@bucket/x", "no bucket"),
    ],
)
def test_an_invalid_address_says_what_to_write(address: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        BucketBackend(address)
    assert "secret" not in str(caught.value)


def test_a_profile_that_does_not_exist_is_a_mistake_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(SettingError, match=r"no-such-profile.*; correct AWS_PROFILE"):
        BucketBackend("s3://bucket/x")


@pytest.mark.parametrize("address", ["not a url", "http://user:SECRET@host:9000", "host:9000", "https://host:9000\n"])
def test_an_invalid_endpoint_is_a_mistake_in_the_settings(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(SettingError, match="set AWS_ENDPOINT_URL") as caught:
        BucketBackend("s3://bucket/x")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION"])
def test_text_that_no_request_can_have_is_refused(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch, variable: str, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "SECRET\nX: y")
    with pytest.raises(AccessRefused, match=r"credentials|invalid settings") as caught:
        BucketBackend(bucket_url).get(RECORD, max_size=10)
    assert "SECRET" not in str(caught.value)


def test_without_credentials_requests_are_anonymous(
    serve: Moto, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with s3_proxy(serve.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        backend = BucketBackend(bucket_url)
        began = time.monotonic()
        assert backend.get(RECORD, max_size=10) is None
        assert time.monotonic() - began < 5  # nothing waits for a metadata server
        proxy.fault = lambda method, path: Fault(403, "AccessDenied")
        with pytest.raises(AccessRefused, match="check the credentials"):
            backend.create(RECORD, b"1")


def test_buckets_of_other_clouds_open_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert BucketBackend("az://container/clips").address == "az://container/clips"
    assert BucketBackend("gs://bucket").address == "gs://bucket"


def test_two_machines_create_one_object(backend: BucketBackend, proxy: S3Proxy) -> None:
    proxy.faults.append(Fault(loses_answer=True))
    with contextlib.suppress(StoreUnreachable, Conflict):
        backend.create(FILE, b"first", {})
    with pytest.raises(Conflict):
        backend.create(FILE, b"second", {})
    assert body(backend, FILE) == b"first"
