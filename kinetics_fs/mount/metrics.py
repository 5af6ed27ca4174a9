"""The metrics of a mount in Prometheus' text format, and their HTTP server. docs/metrics.md lists them."""

from __future__ import annotations

import collections
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    make_wsgi_app,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kinetics_fs.control.status import MountStatus, SharedStatus
from kinetics_fs.errors import FailureKind, MountError

_log = logging.getLogger(__name__)

FETCHED = "fetched"
"""Label `outcome` of a request to a source that delivered the clip; the others are the values of `FailureKind`."""

_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the histogram of fetches, in seconds."""

_LOOPBACK = "127.0.0.1"
_PATH = "/metrics"
_TIMEOUT = 10.0
"""Seconds from the connection of a client to the end of its answer."""
_MAX_CONNECTIONS = 16


class MountMetrics:
    """The metrics of one mount. Safe for threads; a `FetchObserver`.

    Args:
        status: returns the status of the mount.
    """

    def __init__(self, status: Callable[[], MountStatus]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would be listed as metrics of their own
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_StatusMetrics(status))
        self._requests = Counter(
            "kinetics_fs_fetches",
            "Requests for a clip to a source, by outcome.",
            ["source", "outcome"],
            registry=self.registry,
        )
        self._bytes = Counter(
            "kinetics_fs_fetched_bytes", "Bytes of the fetched clips.", ["source"], registry=self.registry
        )
        self._seconds = Histogram(
            "kinetics_fs_fetch_seconds",
            "Time from the request to a source until the clip is in the cache.",
            ["source"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def on_fetched(self, source: str, size: int, seconds: float | None) -> None:
        """Count a clip that was stored."""
        self._requests.labels(source, FETCHED).inc()
        self._bytes.labels(source).inc(size)
        if seconds is not None:
            self._seconds.labels(source).observe(seconds)

    def on_undelivered(self, source: str, kind: FailureKind) -> None:
        """Count a source that did not deliver a clip."""
        self._requests.labels(source, str(kind)).inc()

    def text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()


class _StatusMetrics(Collector):
    """The metrics that the status of the mount contains already, read when a client asks for them."""

    def __init__(self, status: Callable[[], MountStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield from _mount_metrics(status)
        yield from _fetch_metrics(status)
        yield from _cache_metrics(status)
        if status.shared is not None:
            yield from _shared_metrics(status.shared)


def _mount_metrics(status: MountStatus) -> Iterator[Metric]:
    build = GaugeMetricFamily(
        "kinetics_fs_build_info", "Version of kinetics-fs and release of Kinetics.", labels=["version", "release"]
    )
    build.add_metric([status.version, status.release], 1)
    yield build
    mounted_at = datetime.fromisoformat(status.mounted_at).timestamp()
    yield GaugeMetricFamily(
        "kinetics_fs_start_time_seconds", "Time of the mount, in seconds since 1970-01-01 UTC.", mounted_at
    )
    yield GaugeMetricFamily("kinetics_fs_clips", "Number of clips that the mount shows.", status.clips - status.hidden)
    opens = status.opens
    results = {
        "cached": opens.from_cache,
        "fetched": opens.fetched,
        "failed": opens.failed,
        "interrupted": opens.interrupted,
    }
    yield _counter("kinetics_fs_opens", "Opens of clips, by result.", "result", results)
    yield GaugeMetricFamily(
        "kinetics_fs_waiting_opens", "Number of opens that wait until their clip is fetched.", opens.waiting
    )
    states = collections.Counter[str]()
    for prefetch in status.prefetches:
        states["fetched"] += prefetch.fetched
        states["already_cached"] += prefetch.already_cached
        states["failed"] += prefetch.failed
        states["to_do"] += 0 if prefetch.state.has_ended else max(0, prefetch.clips - prefetch.finished)
    if states:
        help = "Number of clips in the running prefetches and the last ones that ended."
        yield _gauge("kinetics_fs_prefetch_clips", help, "state", states)


def _fetch_metrics(status: MountStatus) -> Iterator[Metric]:
    yield _gauge("kinetics_fs_queue", "Number of clips that wait for a fetch.", "priority", status.fetch.queue)
    yield GaugeMetricFamily(
        "kinetics_fs_fetching", "Number of clips that are being fetched.", len(status.fetch.in_flight)
    )
    help = "1 while kinetics-fs does not use a source because it blocks this address, else 0."
    blocked = {name: int(source.blocked_for is not None) for name, source in status.sources.items()}
    yield _gauge("kinetics_fs_source_blocked", help, "source", blocked)


def _cache_metrics(status: MountStatus) -> Iterator[Metric]:
    cache = status.cache
    yield GaugeMetricFamily("kinetics_fs_cache_bytes", "Size of the cached clips.", cache.bytes)
    if cache.limit is not None:
        yield GaugeMetricFamily("kinetics_fs_cache_limit_bytes", "Maximum size of the cached clips.", cache.limit)
    yield GaugeMetricFamily("kinetics_fs_cache_clips", "Number of cached clips.", cache.clips)
    yield GaugeMetricFamily(
        "kinetics_fs_disk_free_bytes", "Bytes that the cache may still use on its disk.", cache.disk_free
    )
    yield CounterMetricFamily("kinetics_fs_evictions", "Clips that this mount evicted.", status.evicted)
    kinds = {str(kind): status.failures.get(kind, 0) for kind in FailureKind}
    yield _gauge("kinetics_fs_failures", "Number of remembered failures, by kind.", "kind", kinds)


def _shared_metrics(shared: SharedStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "kinetics_fs_shared_up", "1 while the shared store can be used, else 0.", int(not shared.error)
    )
    results = {"hit": shared.hits, "miss": shared.misses, "damaged": shared.damaged}
    yield _counter("kinetics_fs_shared_reads", "Clips asked of the shared store, by result.", "result", results)
    yield CounterMetricFamily(
        "kinetics_fs_shared_waits", "Clips for which this mount waited for another machine.", shared.waits
    )
    yield GaugeMetricFamily(
        "kinetics_fs_shared_leases", "Clips that this mount fetches for all machines.", shared.leases
    )
    help = "Requests of all machines of the rate group in the last hour."
    requests = {budget.source: budget.used for budget in shared.budgets}
    yield _gauge("kinetics_fs_shared_requests", help, "source", requests)
    uploads = shared.uploads
    if uploads is None:
        return
    yield GaugeMetricFamily(
        "kinetics_fs_shared_queue", "Clips that wait for their upload to the shared store.", uploads.queued
    )
    yield GaugeMetricFamily(
        "kinetics_fs_shared_queue_age_seconds", "Time since the oldest of them was queued.", uploads.oldest
    )
    yield GaugeMetricFamily(
        "kinetics_fs_shared_paused", "1 while uploads are paused, else 0.", int(bool(uploads.paused))
    )
    left = {name: getattr(uploads, name) for name in ("uploaded", "dropped", "evicted", "refused")}
    yield _counter("kinetics_fs_shared_uploads", "Clips that left the queue, by result.", "result", left)


def _gauge(name: str, help: str, label: str, values: Mapping[str, int]) -> Metric:
    metric = GaugeMetricFamily(name, help, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def _counter(name: str, help: str, label: str, values: Mapping[str, int]) -> Metric:
    metric = CounterMetricFamily(name, help, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


class MetricsServer:
    """An HTTP server for the metrics on the loopback interface, from `start` until the end of the context.

    Args:
        port: TCP port; 0 takes a free one.

    Raises:
        MountError: the port is in use or not allowed.
    """

    def __init__(self, port: int) -> None:
        try:
            self._server = _Server((_LOOPBACK, port), _MetricsRequestHandler)
        except OSError as error:
            raise MountError(
                f"cannot serve metrics on {_LOOPBACK}:{port}: {error.strerror};"
                " give another --metrics-port, or 0 for a free one"
            ) from error
        self.url = f"http://{_LOOPBACK}:{self._server.server_port}{_PATH}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self, metrics: MountMetrics) -> None:
        """Start to answer requests, in a thread of the server's own."""
        self._server.set_app(_application(metrics.registry))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _application(registry: CollectorRegistry) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """Return a WSGI application that serves a registry on `/metrics` alone, and answers `HEAD` as well as `GET`."""
    metrics = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != _PATH:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [f"not found; the metrics are at {_PATH}\n".encode()]
        is_head = environ["REQUEST_METHOD"] == "HEAD"
        try:
            body: Iterable[bytes] = metrics(
                {**environ, "REQUEST_METHOD": "GET"} if is_head else environ, start_response
            )
        except Exception:
            _log.exception("unexpected error in the metrics")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"unexpected error; the log of the mount has it\n"]
        return [] if is_head else body

    return application


class _Server(ThreadingMixIn, WSGIServer):
    """A WSGI server with a thread for each of at most `_MAX_CONNECTIONS` connections; more are closed at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._connections = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # that of HTTPServer asks the resolver for the name of the machine
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._connections.acquire(blocking=False):
            _log.warning("closed a connection to the metrics: %d are open already", _MAX_CONNECTIONS)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(_TIMEOUT, _disconnect, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a client of the metrics disconnected", exc_info=True)


def _disconnect(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _MetricsRequestHandler(WSGIRequestHandler):
    server_version = "kinetics-fs"
    sys_version = ""

    def log_message(self, *_: object) -> None:
        pass
