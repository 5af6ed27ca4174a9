"""How whole splits get here: archives that stream by once, and folders that are walked through once.

The unit of work is one archive: a `Job` of plain values, that any process on any machine can do, and do again: what is
in the store already is passed over, and what was broken off goes on where it stopped. `FolderImporter` is its like for
a folder, which only this machine may see.
"""

from kinetics_fs.fill.archive_job import Job, fill_archive
from kinetics_fs.fill.summary import Summary

__all__ = ["Job", "Summary", "fill_archive"]
