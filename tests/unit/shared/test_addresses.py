"""The address of a shared store."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.errors import SettingError
from kinetics_fs.shared import BucketBackend, FolderBackend, open_backend


def test_an_address_is_a_bucket_or_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_backend("s3://bucket/prefix"), BucketBackend)
    folder = open_backend(str(tmp_path))
    assert isinstance(folder, FolderBackend) and folder.address == str(tmp_path)


@pytest.mark.parametrize("address", ["", "folder", "http://host/x", "file:///x", "s4://bucket"])
def test_any_other_address_is_refused(address: str) -> None:
    with pytest.raises(SettingError, match="cannot use the shared store"):
        open_backend(address)
