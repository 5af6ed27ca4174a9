"""Fixtures for tests of the store."""

from tests.support.store_fixtures import fast_tmp_path as fast_tmp_path
from tests.support.store_fixtures import folder as folder
from tests.support.store_fixtures import public_folder as public_folder
from tests.support.store_fixtures import small_disk as small_disk
from tests.support.store_fixtures import store as store
from tests.support.store_fixtures import without_privileges as without_privileges
