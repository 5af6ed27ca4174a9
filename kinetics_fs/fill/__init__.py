"""Bulk import of clips: from archives, which are read once from end to end, and from folders.

The unit of work is one archive: an `ArchiveJob` of plain values that any process can run, and run again. Clips that
are already in the store are skipped, and an interrupted job resumes where it stopped. `importer.import_folder` does the
same for a folder.
"""
