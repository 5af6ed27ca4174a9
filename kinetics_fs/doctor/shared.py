"""Checks of the shared store: credentials, permissions, conditional writes, its clock, and the uploads to it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kinetics_fs.app import open_shared_store
from kinetics_fs.config import Settings
from kinetics_fs.doctor.findings import WRONG_CLOCK, Finding, State, sentence
from kinetics_fs.errors import FailureKind, SettingError, SharedStoreError, StoreError
from kinetics_fs.store import CacheLayout
from kinetics_fs.util.deadline import within
from kinetics_fs.util.text import count, duration

if TYPE_CHECKING:
    from kinetics_fs.shared import SharedStore

_NAME = "shared store"
_TIMEOUT = 10.0
"""Time limit in seconds for the first answer of the store."""
_SLOW = 1.0
"""Seconds for a small object from which on a store counts as slow."""
_LONG_QUEUE, _OLD = 1000, 3600.0
"""Clips that wait for their upload, or seconds since the oldest of them was added, from which on a warning is due."""

_CURES = {
    "RequestTimeTooSkewed": "Set the clock, or synchronize it with NTP (timedatectl set-ntp true).",
    "Expired": "The credentials have expired: get new ones, for example with aws sso login.",
}
"""Words in an answer of a store, and what to do."""


def store(settings: Settings) -> Iterator[Finding]:
    """Check that the shared store can be read and written, by requests like those of a mount."""
    if settings.shared is None:
        return
    from kinetics_fs.shared import ObjectDamaged

    try:
        if settings.shared.startswith("s3://"):
            yield _credentials()
        opened = within(_TIMEOUT, lambda: open_shared_store(settings))
        assert opened is not None
        may_write = within(_TIMEOUT, lambda: opened.open(create=False))
        begun = time.monotonic()
        opened.read_format()
        latency = time.monotonic() - begun
    except TimeoutError:
        fix = "Check the network, DNS and the firewall, and AWS_ENDPOINT_URL if you set it."
        if settings.shared.startswith("/"):
            fix = "Restart the server of that filesystem, or mount it again."
        yield Finding(_NAME, State.PROBLEM, f"{settings.shared} does not answer within {_TIMEOUT:.0f} s", fix)
        return
    except (SettingError, SharedStoreError) as error:
        yield _refused(_NAME, error)
        return
    yield _answered(opened, latency)
    try:
        opened.backend.get(f"probe/{secrets.token_hex(12)}.json", max_size=1)
    except ObjectDamaged:
        pass
    except SharedStoreError as error:
        found = f"objects that do not exist are refused, so that every clip that the store lacks is an error ({error})"
        fix = "Allow the action s3:ListBucket on the bucket, without conditions."
        yield Finding(_NAME, State.PROBLEM, found.rpartition("; ")[0] + ")", fix)
        return
    yield from _writes(opened, settings, may_write=may_write)


def _credentials() -> Finding:
    """Report from where the keys for S3 come. No finding shows them."""
    from kinetics_fs.util.aws import find_settings, has_botocore

    name = "credentials"
    try:
        found = find_settings().credentials
    except SettingError as error:
        return _refused(name, error)
    if found is not None:
        return Finding(name, State.OK, f"for S3: from {found.method}")
    if has_botocore():
        fix = "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, unless the bucket is public."
        return Finding(name, State.WARNING, "for S3: none; requests are not signed", fix)
    return Finding(name, State.OK, "for S3: from the environment or the instance")


def _refused(name: str, error: Exception) -> Finding:
    """Return the finding for an error, which names its cure after the cause."""
    cause, _, cure = str(error).rpartition("; ")
    fix = sentence(cure) if cause else "Check the network, DNS, the firewall and the server."
    for word, known in _CURES.items():
        if word in str(error):
            fix = known
    is_access = getattr(error, "kind", None) is FailureKind.CREDENTIALS
    return Finding(name, State.PROBLEM, f"{'credentials: ' if is_access else ''}{cause or error}", fix)


def _answered(opened: SharedStore, latency: float) -> Finding:
    found = f"{opened.backend.address} answers within {latency * 1000:.0f} ms, format {opened.read_format().reader}"
    if latency > _SLOW:
        fix = "Use a store in the same region or network: each clip that is not cached takes at least one request."
        return Finding(_NAME, State.WARNING, found, fix)
    return Finding(_NAME, State.OK, found)


def _writes(opened: SharedStore, settings: Settings, *, may_write: bool) -> Iterator[Finding]:
    """Check the permissions of this machine, the abilities of the store, and its clock."""
    name = "shared writes"
    if settings.shared_write == "none":
        yield Finding(name, State.OK, "none, because of --shared-write none")
        return
    if not may_write:
        found = "a newer version of kinetics-fs writes to the store; this one only reads"
        yield Finding(name, State.WARNING, found, "Update kinetics-fs.")
        return
    try:
        abilities = opened.probe()
    except SharedStoreError as error:
        yield _refused(name, error)
        return
    cause, _, cure = abilities.reason.rpartition("; ")
    if not abilities.can_write:
        found = f"this machine only reads, and takes no leases: {cause or abilities.reason}"
        yield Finding(name, State.WARNING, found, sentence(cure) if cause else "Allow it to write.")
        return
    if not abilities.has_conditional_writes:
        found = f"{cause or abilities.reason}: no leases and no common budgets; clips stay correct"
        fix = "Use a server with If-None-Match and If-Match, such as Amazon S3 or MinIO, or a folder with hard links."
        yield Finding(name, State.WARNING, found, fix)
    else:
        yield Finding(name, State.OK, "this machine can write; the store has conditional writes")
    if (theirs := opened.clock.now()) is not None:
        yield _clock(time.time() - theirs)


def _clock(ahead: float) -> Finding:
    if abs(ahead) <= WRONG_CLOCK:
        return Finding("shared clock", State.OK, f"differs from this machine by {abs(ahead):.0f} s")
    way = "ahead of" if ahead > 0 else "behind"
    fix = "Set the clock, or synchronize it with NTP (timedatectl set-ntp true)."
    return Finding("shared clock", State.WARNING, f"this machine is {duration(abs(ahead))} {way} the store", fix)


def uploads(settings: Settings) -> Iterator[Finding]:
    """Check that the clips of the cache reach the shared store."""
    path, name = CacheLayout(settings.cache_dir).uploads, "uploads"
    if settings.shared is None or not path.exists():
        return
    from kinetics_fs.shared import UploadQueue

    try:
        with contextlib.closing(UploadQueue(path)) as queue:
            status = queue.status()
    except StoreError as error:
        yield _refused(name, error)
        return
    waiting = f"{count(status.clips, 'clip')} to upload"
    if status.clips > _LONG_QUEUE or status.oldest > _OLD:
        fix = "See kinetics-fs status for the reason, then run kinetics-fs shared sync."
        found = f"{waiting}, the oldest for {duration(status.oldest)}"
        yield Finding(name, State.WARNING, found, fix)
    else:
        yield Finding(name, State.OK, waiting)
    if status.dropped:
        fix = "Run kinetics-fs shared sync: it uploads what the store lacks."
        yield Finding(name, State.WARNING, f"{count(status.dropped, 'clip')} dropped from a full queue", fix)
