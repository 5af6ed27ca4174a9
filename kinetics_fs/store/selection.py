"""Pages of a selection: its clips, and what the store knows of them, some thousand at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kinetics_fs.catalog import Catalog, Directory, Entry
from kinetics_fs.store.store import CachedFile, KnownSize, Store

_PAGE_SIZE = 4096


@dataclass(frozen=True, slots=True)
class SelectionPage:
    """Some clips of one class in one split.

    Attributes:
        directory: the class.
        entries: the clips, in the order of the catalog.
        sizes: for each clip that was ever cached, by `Clip.key`, its size and whether it is cached now.
    """

    directory: Directory
    entries: list[Entry]
    sizes: dict[str, KnownSize]

    @property
    def keys(self) -> list[str]:
        """The `Clip.key` of each clip."""
        return [entry.clip.key for entry in self.entries]

    def is_cached(self, entry: Entry) -> bool:
        """Return whether a clip of this page is in the cache."""
        known = self.sizes.get(entry.clip.key)
        return known is not None and known.cached


def selection_pages(catalog: Catalog, store: Store) -> Iterator[SelectionPage]:
    """Yield every clip of a catalog with what the store knows of it, in the order of the catalog.

    A page never holds clips of two classes. Memory does not grow with the number of clips.
    """
    for split in catalog.splits():
        for directory in catalog.classes(split):
            yield from class_pages(catalog, store, directory)


def class_pages(catalog: Catalog, store: Store, directory: Directory) -> Iterator[SelectionPage]:
    """Yield the clips of one class in one split. See `selection_pages`."""
    for offset in range(0, directory.clips, _PAGE_SIZE):
        entries = catalog.entries(directory, offset, _PAGE_SIZE)
        yield SelectionPage(directory, entries, store.sizes([entry.clip.key for entry in entries]))


def selected_files(store: Store, catalog: Catalog | None, *, source: str | None = None) -> Iterator[CachedFile]:
    """Yield the files of all cached clips, or of those of a catalog, of all profiles, each once.

    Args:
        store: the store.
        catalog: the clips; None for all.
        source: only clips that this source delivered; None for all.
    """
    if catalog is None:
        yield from store.cached_files(source=source)
        return
    for page in selection_pages(catalog, store):
        once = {entry.clip.key: entry.ino for entry in page.entries}
        for file in store.cached_files(list(once), source=source):
            if catalog.locate(file.clip)[0].ino == once[file.clip.key]:
                yield file
