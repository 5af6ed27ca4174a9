"""The releases of Kinetics: the date of publication of each, and the addresses of its annotations.

Sources of these facts:

* Dates: the first versions of the papers on arXiv: 1705.06950 (400), 1808.01340 (600), 1907.06987 (700),
  2010.10864 (700-2020).
* `s3.amazonaws.com/kinetics/{400,700_2020}/annotations`: the download scripts of the Common Visual Data Foundation
  (github.com/cvdfoundation/kinetics-dataset). Its lists have a row for each clip that the bucket should have.
* `storage.googleapis.com/deepmind-media/Datasets/kinetics*.tar.gz`: the archives that DeepMind publishes, which hold
  `train`, `validate` and `test` as CSV and as JSON.
* 600 is the union of all lists. DeepMind re-cuts its archive over time, without the videos that were deleted. CVDF's
  `test.csv` and `kinetics600_holdout_test.csv` have no labels. Its README marks `train.csv` and `val.csv` as
  incomplete, and `train.txt` and `val.txt` as complete, but no document describes their format.
* 700 (2019) takes DeepMind's archive because CVDF hosts 700-2020 only.
* Numbers of clips: the page on Kinetics in the documentation of FiftyOne's zoo, which gives them for DeepMind's lists
  and for CVDF. Those of CVDF for 400 are rows of its lists; its archives lack about 2 % of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

from kinetics_fs.errors import CatalogError

_CVDF = "https://s3.amazonaws.com/kinetics"
_DEEPMIND = "https://storage.googleapis.com/deepmind-media/Datasets"


class PublishedCount(NamedTuple):
    """Number of clips of each split of a release, as published.

    Attributes:
        source: the publisher of the lists or archives with so many clips.
        clips: split → number of clips.
    """

    source: str
    clips: dict[str, int]


def _count(source: str, train: int, validation: int, test: int) -> PublishedCount:
    return PublishedCount(source, {"train": train, "validation": validation, "test": test})


@dataclass(frozen=True)
class Release:
    """One release of the dataset.

    Attributes:
        name: `400`, `600`, `700` or `700-2020`.
        annotations: URLs of its annotation files, which together cover the whole release, the most reliable first.
        published: date of the paper; the modification time of every clip of the release.
        counts: its published numbers of clips.
    """

    name: str
    annotations: tuple[str, ...]
    published: date
    counts: tuple[PublishedCount, ...] = ()


RELEASES = (
    Release(
        "400",
        tuple(f"{_CVDF}/400/annotations/{split}.csv" for split in ("train", "val", "test")),
        date(2017, 5, 19),
        (_count("DeepMind's lists", 219_782, 18_035, 35_357), _count("CVDF", 246_534, 19_906, 39_805)),
    ),
    Release(
        "600",
        (
            f"{_DEEPMIND}/kinetics600.tar.gz",
            *(
                f"{_CVDF}/600/annotations/{name}"
                for name in (
                    *("train.csv", "val.csv", "test.csv", "kinetics600_holdout_test.csv"),
                    *("train.txt", "val.txt"),
                )
            ),
        ),
        date(2018, 8, 3),
        (_count("DeepMind's lists", 370_582, 28_313, 56_618), _count("CVDF", 427_549, 29_793, 72_924)),
    ),
    Release("700", (f"{_DEEPMIND}/kinetics700.tar.gz",), date(2019, 7, 15)),
    Release(
        "700-2020",
        tuple(f"{_CVDF}/700_2020/annotations/{split}.csv" for split in ("train", "val", "test")),
        date(2020, 10, 21),
        (_count("DeepMind's lists", 542_352, 34_125, 67_433), _count("CVDF", 534_073, 33_914, 64_260)),
    ),
)

_WORD = re.compile(r"(?:kinetics|k)?[-_ ]?(400|600|700(?:[-_ ]2020)?)")


def find_release(word: str) -> Release:
    """Return the release that a user names: `600`, `k600`, `kinetics-600`, `Kinetics600`, `700_2020`.

    Raises:
        CatalogError: there is no such release.
    """
    if match := _WORD.fullmatch(word.strip().lower()):
        name = re.sub("[_ ]", "-", match[1])
        return next(release for release in RELEASES if release.name == name)
    known = ", ".join(release.name for release in RELEASES)
    raise CatalogError(f'cannot find the release "{word}" of Kinetics: there are {known}')
