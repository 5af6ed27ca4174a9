"""A tiny Kinetics on this machine: videos made on the spot, annotations in the real format, and a site to host them.

`dataset` makes them, `site` hosts them, `host` is the site as a process of its own. All else in the demo (and in
the tests that use this) is the production code with other addresses.
"""
