"""Fetching clips into the store: each clip once, in a worker process, verified, and urgent clips first.

`fetcher.Fetcher` is the queue. Each of its threads has a worker process that asks the sources, cuts and verifies.
`pool` is the parent's side of it, `worker` the child's. `outcomes` combines, remembers and logs failures. `prefetch`
requests many clips in their order; if a process will open them in that order, an `access_cursor` follows it.
`prefetch_manager` runs the prefetch jobs of a mount.
"""
