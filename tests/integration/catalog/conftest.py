"""Fixtures of the catalog that the unit tests have too."""

from tests.support.annotations import release as release
