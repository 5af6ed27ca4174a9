"""Settings and credentials for archives in a bucket, where AWS programs look for them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.archive import s3
from kinetics_fs.sources.archive.reader import open_archive, read_small
from kinetics_fs.util import aws
from tests.support.archive_site import ArchiveSite
from tests.support.command_line import ENVIRONMENT
from tests.support.liars import ends_in_time, lying_server, slow_page

KEY = "AKIAEXAMPLE"
SECRET = "not-a-secret-of-anybody"
TOKEN = "a-token-of-the-session"


@pytest.fixture
def archives() -> Iterator[ArchiveSite]:
    with ArchiveSite({"bucket/it's (a) file.tar": b"hello"}) as archives:
        yield archives


@pytest.fixture
def home(archives: ArchiveSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`~/.aws` of a user with no settings but the address of the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / ".aws"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", archives.url)
    s3.forget()
    yield folder
    s3.forget()


ADDRESS = "s3://bucket/it's (a) file.tar"


def read_object(address: str = ADDRESS) -> bytes:
    return read_small(open_archive(address), 100)


def signed_by(archives: ArchiveSite) -> list[str]:
    """Keys by which the requests so far were signed."""
    return [header["Authorization"].split("Credential=")[1].split("/")[0] for header in archives.headers]


def test_without_credentials_nothing_is_signed(archives: ArchiveSite, home: Path) -> None:
    assert read_object() == b"hello"
    assert not any("Authorization" in header for header in archives.headers)


def test_what_is_signed(archives: ArchiveSite, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", KEY), ("SECRET_ACCESS_KEY", SECRET), ("SESSION_TOKEN", TOKEN)):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_REGION", "eu-west-3")

    assert read_object() == b"hello"

    header = archives.headers[-1]
    assert "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token," in header["Authorization"]
    assert "/eu-west-3/s3/aws4_request" in header["Authorization"]
    assert (header["x-amz-security-token"], header["Range"]) == (TOKEN, "bytes=0-4")
    assert header["If-Match"], "the same checks as ever"


def test_profiles(archives: ArchiveSite, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    (home / "credentials").write_text(f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    (home / "config").write_text(f"[profile lab]\nregion = eu-north-1\nendpoint_url = {archives.url}\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")

    assert read_object() == b"hello"
    assert signed_by(archives) == [KEY] * 2
    assert "/eu-north-1/" in archives.headers[0]["Authorization"]


def test_credentials_that_expire_are_renewed(archives: ArchiveSite, home: Path) -> None:
    # A program of the user's, that says each time that its keys are good for a minute: too short to be kept.
    program = home / "program.py"
    program.write_text(
        f"""
import datetime, json, pathlib
count = pathlib.Path({str(home / "count")!r})
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)
print(json.dumps({{"Version": 1, "AccessKeyId": f"KEY{{number}}", "SecretAccessKey": "x", "SessionToken": "y",
                  "Expiration": soon.isoformat()}}))
"""
    )
    (home / "config").write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")

    assert read_object() == b"hello"
    first, second = signed_by(archives)
    assert int(first[3:]) < int(second[3:])


def test_bucket_in_another_region(archives: ArchiveSite, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.region = "ap-south-1"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    assert read_object() == b"hello"
    assert [sent.status for sent in archives.requests] == [400, 206, 206], "it is found out once"


def test_bucket_in_no_region(archives: ArchiveSite, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.region = "../evil"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    with pytest.raises(FetchError, match="AWS_REGION") as caught:
        read_object()
    assert caught.value.kind is FailureKind.CONFIG
    assert len(archives.requests) == 1

    archives.region = "eu-central-2"
    monkeypatch.setenv("AWS_REGION", archives.region)  # read again after a refusal
    assert read_object() == b"hello"
    assert len(archives.requests) == 1 + 2


def test_amazons_regions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert open_archive("s3://b/a b").address == "https://s3.amazonaws.com/b/a%20b"
    # As S3 encodes it for itself, whoever encoded it before.
    for path in ("it's (a)/b.tar", "it%27s%20(a)/b.tar"):
        assert open_archive(f"s3://b/{path}").address == "https://s3.amazonaws.com/b/it%27s%20%28a%29/b.tar"
    s3.forget()
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert open_archive("s3://b/a%20b").address == "https://s3.eu-west-3.amazonaws.com/b/a%20b"


def test_credentials_that_cannot_be_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config").write_text(
        "[default]\n"
        f"""credential_process = {sys.executable} -c "import sys; sys.exit('{SECRET}')"\n"""
    )
    with pytest.raises(FetchError, match="cannot use the AWS credentials: CredentialRetrievalError") as caught:
        read_object()
    assert SECRET not in str(caught.value)
    assert caught.value.kind is FailureKind.CONFIG

    s3.forget()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(FetchError, match="nobody"):
        read_object()


def test_credentials_that_take_too_long(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not end, and a metadata server that sends one byte at a time."""
    monkeypatch.setattr(aws, "CREDENTIALS_TIMEOUT", 0.5)
    (home / "config").write_text("[default]\ncredential_process = sleep 5\n")
    with ends_in_time(0.5), pytest.raises(FetchError, match="credentials: it takes longer than 0 s; correct") as caught:
        read_object()
    assert caught.value.kind is FailureKind.CONFIG

    s3.forget()
    (home / "config").unlink()
    with lying_server(slow_page) as address:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{address}/")
        with ends_in_time(0.5), pytest.raises(FetchError, match="it takes longer"):
            read_object()
        with ends_in_time(0.0), pytest.raises(FetchError, match="it takes longer"):
            read_object()


def test_an_endpoint_that_cannot_be_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:{SECRET}@host:9000")
    with pytest.raises(FetchError, match="set AWS_ENDPOINT_URL to") as caught:
        read_object()
    assert caught.value.kind is FailureKind.CONFIG
    assert SECRET not in str(caught.value)


def test_nothing_secret_is_logged(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("ACCESS_KEY_ID", KEY), ("SECRET_ACCESS_KEY", SECRET), ("SESSION_TOKEN", TOKEN)):
        monkeypatch.setenv(f"AWS_{name}", value)
    caplog.set_level(logging.DEBUG)

    assert read_object() == b"hello"
    assert not any(secret in caplog.text for secret in (KEY, SECRET, TOKEN, "Signature"))


def test_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    program = (
        "import sys; from kinetics_fs.sources.archive.source import ArchiveSource;"
        "from kinetics_fs.sources.archive.reader import open_archive; open_archive('https://example.org/a');"
        "print([name for name in sys.modules if name.startswith('botocore') or name.endswith('.s3')])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_without_botocore_it_is_anonymous(archives: ArchiveSite, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore", None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert read_object() == b"hello"
    assert not any("Authorization" in header for header in archives.headers)

    archives.region = "eu-west-1"  # and so it refuses
    with pytest.raises(FetchError) as caught:
        read_object()
    assert caught.value.kind is FailureKind.CONFIG
