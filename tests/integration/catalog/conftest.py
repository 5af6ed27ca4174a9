"""Fixtures of the catalog that the unit tests have too."""

from tests.unit.catalog.conftest import release as release
