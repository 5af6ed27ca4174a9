"""A tiny Kinetics: generated videos, annotations in the real format, and a local video site that serves them.

`media` makes videos, `dataset` the annotations, `site` serves them, `host` runs the site as a process, and `run` is
the demo. Everything else that the demo and the tests use is the production code with other URLs.
"""
