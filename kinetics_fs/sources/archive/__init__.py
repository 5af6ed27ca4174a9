"""The public archives of clips: reading one clip out of an archive, or all clips in one pass.

The Common Visual Data Foundation hosts the clips of the releases as `.tar.gz` files of about a gigabyte. Videos hardly
compress, so a decoder can enter such a file nearly anywhere once an index says where each clip is.

* `libz` and `inflate`: decompression, and the offsets at which it can start
* `tar`: the members of an archive that are clips
* `scan`: one pass over an archive, which builds an index and can resume from a checkpoint
* `index`: the index of an archive, as a file that can be published
* `index_db`: the database of the indexes in the cache
* `extract`: one clip by its index record
* `base`, `remote`, `s3` and `reader`: the bytes of an archive on a disk or a server
* `layout`: the archives of a release, and their names
* `stream`: reading an archive whole
* `limit`: the limit on what one open may download
* `source`: the archives as a source of clips
"""
