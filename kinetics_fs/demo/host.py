"""The video site of the demo as a process: `python -m kinetics_fs.demo.host FOLDER MOUNTPOINT`.

Prints the URL template, then a line `PATH BYTES` for each request. Ends soon after MOUNTPOINT is unmounted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.mount import find_mounts

_MOUNT_TIMEOUT = 120.0
_POLL_INTERVAL = 0.5


def main() -> None:
    """Serve the videos until the demo's mount has ended."""
    folder, mountpoint = Path(sys.argv[1]), Path(sys.argv[2])
    started = time.monotonic()
    mounted, printed = False, 0
    with VideoSite(folder) as site:
        print(site.url_template, flush=True)
        while mountpoint in find_mounts() or (not mounted and time.monotonic() - started < _MOUNT_TIMEOUT):
            mounted = mounted or mountpoint in find_mounts()
            for path, size in site.requests[printed:]:
                print(f"{path} {size}", flush=True)
                printed += 1
            time.sleep(_POLL_INTERVAL)


if __name__ == "__main__":
    main()
