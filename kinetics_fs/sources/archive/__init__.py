"""The public archives of clips: one clip straight out of one, without downloading it, or all that pass by.

Common Visual Data Foundation hosts the clips of the releases as `.tar.gz` files of about a gigabyte. Videos hardly
deflate, and so such a file can be entered nearly anywhere, once it is known where what is:

* `libz` and `inflate`: unpacking, with the places where it can be entered
* `tar`: which of the bytes are clips
* `scan`: one pass over an archive, with an index as a by-product, and where to go on after a kill
* `index`: what an index is, as a file to hand on
* `extract`: one clip by its record in an index
* `access`: where the bytes come from
* `places`: which archives there are, and which holds what
* `index_db`: the indexes that are here
* `source`: all this as a source of clips
"""
