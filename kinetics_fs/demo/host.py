"""The demo's site as a process: `python -m kinetics_fs.demo.host FOLDER MOUNTPOINT`.

Prints the address template, then what is asked of it; ends a while after nothing is mounted on MOUNTPOINT any more.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.mount import find_mounts

_TIME_TO_MOUNT = 120.0
_LOOK_EVERY = 0.5


def main() -> None:
    folder, mountpoint = Path(sys.argv[1]), Path(sys.argv[2])
    started = time.monotonic()
    mounted, told = False, 0
    with VideoSite(folder) as site:
        print(site.url_template, flush=True)
        while mountpoint in find_mounts() or (not mounted and time.monotonic() - started < _TIME_TO_MOUNT):
            mounted = mounted or mountpoint in find_mounts()
            for path, size in site.requests[told:]:
                print(f"{path} {size}", flush=True)
                told += 1
            time.sleep(_LOOK_EVERY)


if __name__ == "__main__":
    main()
