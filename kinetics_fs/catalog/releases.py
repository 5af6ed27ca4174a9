"""The releases of Kinetics: the date of publication of each, and the addresses of its annotations.

Sources of these facts:

* Dates: the first versions of the papers on arXiv: 1705.06950 (400), 1808.01340 (600), 1907.06987 (700),
  2010.10864 (700-2020).
* `s3.amazonaws.com/kinetics/{400,700_2020}/annotations`: the download scripts of the Common Visual Data Foundation
  (github.com/cvdfoundation/kinetics-dataset). Its lists have a row for each clip that the bucket should have.
* `storage.googleapis.com/deepmind-media/Datasets/kinetics*.tar.gz`: the archives that DeepMind publishes, which hold
  `train`, `validate` and `test` as CSV and as JSON.
* 600 takes DeepMind's archive although CVDF has lists too: the README of CVDF marks its `train.csv` and `val.csv` as
  incomplete, and the format of its `train.txt` is undocumented.
* 700 (2019) takes DeepMind's archive because CVDF hosts 700-2020 only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from kinetics_fs.errors import CatalogError

_CVDF = "https://s3.amazonaws.com/kinetics"
_DEEPMIND = "https://storage.googleapis.com/deepmind-media/Datasets"


@dataclass(frozen=True)
class Release:
    """One release of the dataset.

    Attributes:
        name: `400`, `600`, `700` or `700-2020`.
        annotations: URLs of its annotation files, which together cover the whole release.
        published: date of the paper; the modification time of every clip of the release.
    """

    name: str
    annotations: tuple[str, ...]
    published: date


RELEASES = (
    Release(
        "400", tuple(f"{_CVDF}/400/annotations/{split}.csv" for split in ("train", "val", "test")), date(2017, 5, 19)
    ),
    Release("600", (f"{_DEEPMIND}/kinetics600.tar.gz",), date(2018, 8, 3)),
    Release("700", (f"{_DEEPMIND}/kinetics700.tar.gz",), date(2019, 7, 15)),
    Release(
        "700-2020",
        tuple(f"{_CVDF}/700_2020/annotations/{split}.csv" for split in ("train", "val", "test")),
        date(2020, 10, 21),
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
