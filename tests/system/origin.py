"""The site of the demo as a service: `origin.py VIDEOS CONFIG`. Writes its address to a configuration file."""

import sys
import threading
from pathlib import Path

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.mount.systemd import Notifier

videos, config = Path(sys.argv[1]), Path(sys.argv[2])
with VideoSite(videos) as site:
    lines = [line for line in config.read_text().splitlines() if not line.startswith("video-url")]
    config.write_text("\n".join([f'video-url = "{site.url_template}"', *lines, ""]))
    Notifier.from_environment().send(READY="1")
    threading.Event().wait()
