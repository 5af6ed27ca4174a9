"""`FetchError`, for programs that know nothing of kinetics-fs."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from kinetics_fs.errors import FailureKind, FetchError, UnknownClipError
from kinetics_fs.shared.backend import AccessRefused
from kinetics_fs.sources.archive.base import ArchiveChanged


def through_pickle(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301  # bytes of this process


GONE = FetchError(FailureKind.GONE, "Video unavailable", source="youtube", retry_after=60.0)


@pytest.mark.parametrize(
    ("kind", "cause", "expected"),
    [
        (FailureKind.GONE, None, errno.EIO),
        (FailureKind.CREDENTIALS, None, errno.EACCES),
        (FailureKind.BLOCKED, None, errno.EAGAIN),
        (FailureKind.TRANSIENT, errno.ETIMEDOUT, errno.ETIMEDOUT),
        (FailureKind.TRANSIENT, errno.ENOSPC, errno.EIO),
        (FailureKind.LOCAL, errno.ENOSPC, errno.ENOSPC),
        (FailureKind.LOCAL, errno.ENOENT, errno.EIO),
        (FailureKind.CORRUPT, errno.ENOMEM, errno.EIO),
    ],
)
def test_it_is_an_os_error_with_the_errno_of_a_mount(kind: FailureKind, cause: int | None, expected: int) -> None:
    with pytest.raises(OSError, match=r"^the reason$") as caught:
        raise FetchError(kind, "the reason", cause_errno=cause)
    assert caught.value.errno == expected
    assert caught.value.strerror == "the reason"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_pickle])
def test_it_survives_pickling(copied: Callable[[Exception], Any]) -> None:
    again = copied(GONE)
    assert type(again) is FetchError and str(again) == "Video unavailable"
    assert (again.as_json(), again.errno, again.strerror) == (GONE.as_json(), errno.EIO, "Video unavailable")
    assert copied(ArchiveChanged("/archive.tar")).kind is ArchiveChanged("/archive.tar").kind
    assert copied(AccessRefused("no", FailureKind.LOCAL)).kind is FailureKind.LOCAL


def test_a_name_that_is_not_in_the_selection_is_no_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"^no such clip$") as caught:
        raise UnknownClipError("no such clip")
    assert caught.value.errno == errno.ENOENT
    again = through_pickle(caught.value)
    assert (type(again), str(again), again.errno) == (UnknownClipError, "no such clip", errno.ENOENT)
