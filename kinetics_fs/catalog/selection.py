"""Selection of a part of a catalog, with the parameters of the zoo of FiftyOne: splits, classes, max_samples, shuffle.

A selection is itself a catalog, with the same schema and in the same folder, so that no user of a catalog has to know
about selections. Inode numbers and class indexes are those of the whole release.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path

from kinetics_fs.catalog.catalog import Catalog
from kinetics_fs.catalog.clip import Clip
from kinetics_fs.catalog.compile import find_catalog
from kinetics_fs.catalog.database import catalog_path, new_database, path_to_build, remove_predecessors
from kinetics_fs.catalog.naming import SPLITS, UNLABELED, ClassNames, class_name, split_name
from kinetics_fs.errors import CatalogError

_log = logging.getLogger(__name__)

_NO_MATCH = "the selection matches no clip"
_SUGGESTIONS = 3  # names that an error suggests in place of an unknown one


@dataclass(frozen=True)
class Selection:
    """The part of a release that is selected. The default is the whole release.

    Attributes:
        splits: `train`, `validation` (also `val`, `validate`), `test`; empty for all.
        classes: labels, in any style of `ClassNames`, or `UNLABELED`; empty for all.
        max_samples: maximum number of clips in each split, at least 1; None for all. Without `shuffle` they are taken
            evenly: the first of each class, then the second of each, and so on.
        shuffle: take a uniform random sample instead. Has no effect without `max_samples`: folders are always sorted.
        seed: seed of the shuffle. The same seed selects the same clips on every machine. None draws a seed and logs
            it, so that the sample can be repeated.
        available: leave out the clips that are known to be unavailable: samples have the next ones in their place.
    """

    splits: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    max_samples: int | None = None
    shuffle: bool = False
    seed: int | None = None
    available: bool = False


def select(catalog: Catalog, selection: Selection, folder: Path, unavailable: Collection[str] = ()) -> Catalog:
    """Return the catalog of a selection from `catalog`: `catalog` itself if everything is selected.

    Otherwise it is a file in `folder`, which is built once per catalog and selection. `catalog` stays open.

    Args:
        catalog: a release, or a selection from it.
        selection: the part to select.
        folder: the folder of the new file.
        unavailable: `Clip.key` of the clips that are known to be unavailable, for `Selection.available`.

    Raises:
        CatalogError: a split or class does not exist, nothing matches, or the file cannot be written.
    """
    exact = _resolve(catalog, selection)
    left_out = sorted({clip.key for clip in catalog.positions(unavailable)}) if selection.available else []
    if exact == Selection() and not left_out:
        return catalog
    parameters = {name: value for name, value in asdict(exact).items() if name != "available"}
    chosen = json.dumps(parameters, sort_keys=True)
    family = _digest(catalog.annotations_digest, chosen)
    if left_out:
        chosen = json.dumps(parameters | {"left_out": _digest(*left_out)}, sort_keys=True)
    digest, annotations_digest = _digest(catalog.digest, chosen), _digest(catalog.annotations_digest, chosen)
    path = catalog_path(folder, family, digest)
    existing = find_catalog(path, digest)
    if existing is None:
        path = path_to_build(path, catalog.path.stat().st_size)
        info = {"key": digest, "digest": digest, "annotations_digest": annotations_digest, "selection": chosen}
        if_none = "all clips that match are known to be unavailable" if left_out else _NO_MATCH
        _derive(catalog, exact, path, info, left_out=left_out, if_none=if_none)
        if digest != family:
            remove_predecessors(path, family)
    return Catalog(existing or path)


def _digest(*texts: str) -> str:
    return hashlib.sha256(f"selection 1 {' '.join(texts)}".encode()).hexdigest()


def select_clips(catalog: Catalog, clips: Iterable[Clip], folder: Path, *, if_none: str) -> Catalog:
    """Return the catalog of the given clips that are in `catalog`, in a new file, which the caller removes.

    Args:
        catalog: a release, or a selection from it.
        clips: the clips to keep.
        folder: the folder of the new file.
        if_none: the cause to name in the error if `catalog` has none of the clips.

    Raises:
        CatalogError: none of the clips is in `catalog`, or the file cannot be written.
    """
    digest = hashlib.sha256(f"only {catalog.digest} {secrets.token_hex(16)}".encode()).hexdigest()
    path = path_to_build(catalog_path(folder, digest, digest), catalog.path.stat().st_size)
    info = {"key": digest, "digest": digest, "annotations_digest": digest, "selection": "only"}
    _derive(catalog, Selection(), path, info, among=clips, if_none=if_none)
    return Catalog(path)


def _resolve(catalog: Catalog, selection: Selection) -> Selection:
    """Return the canonical form of a selection: canonical names in canonical order, a seed, no ineffective value."""
    if selection.max_samples is not None and selection.max_samples < 1:
        raise CatalogError(
            f"cannot select {selection.max_samples} samples of each split: at least one sample is required"
        )
    shuffle = selection.shuffle and selection.max_samples is not None
    seed = selection.seed if shuffle else None
    if shuffle and seed is None:
        seed = draw_seed()
    return Selection(
        splits=resolve_splits(selection.splits),
        classes=_resolve_classes(catalog, selection.classes),
        max_samples=selection.max_samples,
        shuffle=shuffle,
        seed=seed,
    )


def draw_seed() -> int:
    """Return a seed for `Selection.seed`, and log it."""
    seed = secrets.randbits(32)
    _log.info("shuffled with seed %d; set this seed to select the same clips again", seed)
    return seed


def resolve_splits(words: Sequence[str]) -> tuple[str, ...]:
    """Return the splits that a user names, in listing order.

    Raises:
        CatalogError: there is no such split.
    """
    splits = set()
    for word in words:
        split = split_name(word)
        if split is None:
            raise CatalogError(f'cannot select the split "{word}": there are {", ".join(SPLITS)}')
        splits.add(split)
    return tuple(sorted(splits, key=SPLITS.index))


def _resolve_classes(catalog: Catalog, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    known = {UNLABELED: UNLABELED}
    for style in ClassNames:  # raw comes first: a label always means itself
        for label in catalog.labels():
            known.setdefault(class_name(label, style), label)
    chosen = set()
    for name in names:
        if name not in known:
            # A label may be close in two styles; it is suggested once.
            near = dict.fromkeys(known[word] for word in get_close_matches(name, known, n=3 * _SUGGESTIONS))
            offer = ", ".join(f'"{label}"' for label in list(near)[:_SUGGESTIONS])
            hint = f"; did you mean {offer}?" if offer else ""
            raise CatalogError(
                f'cannot select the class "{name}": Kinetics-{catalog.release} has no class of that name{hint}'
            )
        chosen.add(known[name])
    return tuple(sorted(chosen))


def _derive(
    catalog: Catalog,
    selection: Selection,
    path: Path,
    info: dict[str, str],
    *,
    among: Iterable[Clip] | None = None,
    left_out: Sequence[str] = (),
    if_none: str = _NO_MATCH,
) -> None:
    with new_database(path, info) as connection:
        connection.execute("ATTACH ? AS whole", (catalog.path.absolute().as_uri() + "?mode=ro&immutable=1",))
        connection.execute(
            "INSERT INTO info SELECT key, value FROM whole.info WHERE key IN ('release', 'published', 'duplicates')"
        )
        for table in ("label", "refusal", "refusal_count", "origin"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM whole.{table}")
        connection.execute(
            """
            INSERT INTO directory
            SELECT id, ino, parent, split, label, 0, 0 FROM whole.directory
            WHERE (:all_splits OR split IN (SELECT value FROM json_each(:splits)))
              AND (:all_classes OR label IS NULL OR label IN (SELECT value FROM json_each(:classes)))
            """,
            {
                "all_splits": not selection.splits,
                "splits": json.dumps(selection.splits),
                "all_classes": not selection.classes,
                "classes": json.dumps(selection.classes),
            },
        )
        # The rows of the whole catalog are in their final order already.
        matching = """
            SELECT clip.*, full.parent, clip.row - full.first_row AS position
            FROM directory
            JOIN whole.directory AS full USING (id)
            CROSS JOIN whole.clip AS clip ON clip.row >= full.first_row AND clip.row < full.first_row + full.clips
            WHERE directory.label IS NOT NULL
        """
        if among is not None:
            connection.execute(
                """
                CREATE TEMP TABLE wanted (youtube_id, start, "end", PRIMARY KEY (youtube_id, start, "end"))
                WITHOUT ROWID
                """
            )
            connection.executemany("INSERT OR IGNORE INTO wanted VALUES (?, ?, ?)", among)
            matching += ' AND (clip.youtube_id, clip.start, clip."end") IN (SELECT * FROM wanted)'
        if left_out:
            connection.execute("CREATE TEMP TABLE left_out (key PRIMARY KEY) WITHOUT ROWID")
            connection.executemany("INSERT INTO left_out VALUES (?)", zip(left_out))
            matching += """
                AND printf('%s_%06d_%06d', clip.youtube_id, clip.start, clip."end") NOT IN (SELECT key FROM left_out)
            """
        if selection.max_samples is not None:
            connection.create_function("shuffled", 4, _shuffled, deterministic=True)
            order = 'shuffled(:seed, youtube_id, start, "end")' if selection.shuffle else "position"
            matching = f"""
                SELECT * FROM (
                    SELECT *, row_number() OVER (PARTITION BY parent ORDER BY {order}, row) AS turn FROM ({matching})
                ) WHERE turn <= :max_samples
            """
        taken = connection.execute(
            f"""
            INSERT INTO clip (directory, youtube_id, start, "end", ino, origin)
            SELECT directory, youtube_id, start, "end", ino, origin FROM ({matching}) ORDER BY row
            """,
            {"seed": str(selection.seed), "max_samples": selection.max_samples},
        ).rowcount
        if not taken:
            raise CatalogError(f"cannot select clips of Kinetics-{catalog.release}: {if_none}")


def _shuffled(seed: str, youtube_id: str, start: int, end: int) -> bytes:
    """Return the sort key of a clip in the shuffle: a hash, so that it depends on the seed and the clip alone."""
    return blake2b(f"{seed} {Clip(youtube_id, start, end).key}".encode(), digest_size=8).digest()
