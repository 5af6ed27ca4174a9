"""Fixtures for tests of the store."""

from pathlib import Path

import pytest

from kinetics_fs.store import Store
from tests.support.store import keep_clips
from tests.support.store_fixtures import fast_tmp_path as fast_tmp_path
from tests.support.store_fixtures import folder as folder
from tests.support.store_fixtures import public_folder as public_folder
from tests.support.store_fixtures import small_disk as small_disk
from tests.support.store_fixtures import store as store
from tests.support.store_fixtures import without_privileges as without_privileges


@pytest.fixture
def three(folder: Path) -> Path:
    """The directory of a closed store with the clips 0, 1 and 2, stored in this order."""
    with Store(folder) as store:
        keep_clips(store, 3)
    return folder
