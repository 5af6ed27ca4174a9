"""The exchange of archive indexes with a shared store, before a catalog is opened.

A mount does it in a process of its own: the library for buckets has threads, which do not survive the fork of a mount
that goes into the background. `python -m kinetics_fs.fill.index_exchange` reads the fields of an `IndexExchange` from
its standard input, as JSON, and writes ``{"error": …}`` to its standard output: the message, or null.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from kinetics_fs.errors import ArchiveError, KineticsError, SharedStoreError
from kinetics_fs.fill.shared_indexes import import_shared_indexes, share_indexes
from kinetics_fs.shared import SharedStore, StoreMissing, StoreUnreachable, open_backend
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import CacheLayout, Store
from kinetics_fs.util import logs
from kinetics_fs.util.processes import end_with_parent

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexExchange:
    """An exchange of the indexes of archives between a cache and a shared store.

    Args:
        address: the shared store.
        cache_dir: the cache directory.
        min_free: space to leave free on the disk, in bytes.
        write: also share the indexes of archives that this machine has read.
    """

    address: str
    cache_dir: str
    min_free: int
    write: bool

    def run(self) -> None:
        """Do it. If the store cannot be reached, this is logged: the next one may.

        Raises:
            SharedStoreError: the address has no store, or one that this program cannot use.
            StoreError: the cache directory cannot be used.
        """
        shared, folder = SharedStore(open_backend(self.address)), Path(self.cache_dir)
        try:
            may_write = shared.open(create=False)
            with (
                Store(folder, min_free=self.min_free) as store,
                ArchiveIndexDB(CacheLayout(folder).archive_indexes) as index_db,
            ):
                import_shared_indexes(shared, index_db, folder, store.failures)
                if may_write and self.write:
                    share_indexes(shared, index_db)
        except StoreMissing:
            raise
        except (StoreUnreachable, ArchiveError) as error:
            _log.info("cannot exchange the indexes of archives with the shared store: %s", error)

    def run_apart(self) -> None:
        """Do it in a process of its own.

        Raises:
            SharedStoreError: as `run`, or the process died.
        """
        command = [sys.executable, "-P", "-m", __name__, str(logging.getLogger().level)]
        request = json.dumps(asdict(self)) + "\n"
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(request)
                process.stdin.flush()  # left open: the process ends with this one
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            except BaseException:
                process.kill()
                raise
        error = json.loads(answer)["error"] if answer else "its process died"
        if error is not None:
            raise SharedStoreError(error)


def main() -> None:
    """Do the exchange that standard input has; the argument is the level of the log."""
    logs.set_up(int(sys.argv[1]))
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return  # the parent has just died
    end_with_parent(0)
    error = None
    try:
        IndexExchange(**json.loads(line)).run()
    except KineticsError as failure:
        error = str(failure)
    print(json.dumps({"error": error}))


if __name__ == "__main__":
    main()
