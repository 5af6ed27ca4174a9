"""Executor that does archive jobs on the workers of a dask cluster. `dask_task` is what runs there.

Dask decides which worker does a job, and does it again elsewhere if the worker dies. Nothing else rests on dask: a job
may be done twice, and its result is the same. If this process dies, the scheduler drops its tasks.

A coroutine in the event loop of dask's client follows each job.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import logging
import re
import warnings
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from kinetics_fs.errors import FailureKind, FetchError, KineticsError, SettingError, masked, root_cause
from kinetics_fs.fill.archive_job import ArchiveJob, Outcome
from kinetics_fs.fill.job_process import JobReport, read_answer

try:
    import dask
    import distributed
    from distributed.client import FutureCancelledError

    from kinetics_fs.fill.dask_task import TOPIC, Event, Reply, do_job, hold, own_versions
except ImportError:
    raise SettingError("cannot use --dask: distributed is not installed; install kinetics-fs[dask]") from None

_log = logging.getLogger(__name__)

T = TypeVar("T")

_PACKAGE = "kinetics-fs"
RESOURCE = "kinetics-fs"
"""Resource that workers may declare: the number of archives that a worker reads at the same time."""

_CONNECT_TIMEOUT = 10.0
_WATCH_INTERVAL = 1.0
_MAX_END = 8.0
"""Seconds that jobs have to end after they were cancelled. A worker kills a process after 5."""
_MAX_TRIES = 3
"""How often a job is done that fails by a fault of the network or by the death of its process."""
_FIRST_PAUSE = 1.0
"""Seconds before the second try. The pause doubles."""


class _Worker(NamedTuple):
    name: str
    threads: int
    archives: float | None
    """The resource; None if it is not declared."""


class DaskExecutor:
    """Executor that does jobs on the workers of a dask cluster. Workers may come and go.

    Args:
        address: address of the scheduler, such as `tcp://scheduler:8786`.
        report: receives the progress of each job.
        worker_cache_dir: cache directory on the machines of the workers, in which `{worker}` is replaced by the name of
            the worker; None for the path of the jobs.

    Raises:
        SettingError: the address or the directory is invalid.
        KineticsError: the scheduler does not answer, or a machine has other versions of what must be the same.
    """

    is_local = False

    def __init__(self, address: str, report: JobReport, *, worker_cache_dir: str | None = None) -> None:
        if worker_cache_dir is not None and not worker_cache_dir.startswith("/"):
            raise SettingError(
                f"cannot use {worker_cache_dir!r} as --worker-cache-dir: it is not absolute; give a path from / on"
            )
        self._address = address
        self._report = report
        self._worker_cache_dir = worker_cache_dir
        self._versions = own_versions()
        self._workers: dict[str, _Worker] = {}
        """By address."""
        self._unusable: dict[str, str] = {}
        """Workers that lack something, with the reasons. They get no further jobs."""
        self._jobs: dict[str, ArchiveJob] = {}
        """By the keys of their tasks."""
        self._running: dict[str, str] = {}
        """The worker of each task that has begun."""
        self._has_ended = asyncio.Event()
        """Whether a task has ended on its worker."""
        self._catalogs: dict[Path, tuple[str, distributed.Future]] = {}
        """Digests and contents of the catalogs that were sent."""
        self._coroutines: set[asyncio.Task[Any]] = set()
        self._client = _connect(address)
        try:
            self._call(self._begin())
        except BaseException:
            self._client.close(timeout=_CONNECT_TIMEOUT)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def slots(self) -> int:
        """Twice the number of jobs that the workers do at a time, and one more.

        Workers then need not wait for the next job, and an adaptive cluster sees that there is more to do.
        """
        usable = [worker for address, worker in self._workers.items() if address not in self._unusable]
        return 2 * sum(int(min(worker.threads, worker.archives or worker.threads)) for worker in usable) + 1

    def submit(self, job: ArchiveJob) -> Future[Outcome]:
        """Accept a job; it begins when a worker is free.

        Raises:
            SettingError: the job has a password: tasks can be read by everybody who can reach the scheduler.
        """
        for address in (one for one in (job.base, job.shared) if masked(one) != one):
            raise SettingError(
                f"cannot send {address} to dask workers: it has a password or a signature, which others could read;"
                " use an address without one, and give the workers credentials in their environment"
            )
        job = dataclasses.replace(job, base=_absolute(job.base), shared=_absolute(job.shared))
        return self._start(self._do(job))

    def shutdown(self) -> None:
        """Cancel all jobs, and wait until those in progress have ended, which takes some seconds at most."""
        if self._client.status != "closed":
            self._call(self._end())
            self._client.close(timeout=_CONNECT_TIMEOUT)

    # In the event loop of the client

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._client.loop.asyncio_loop)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, from another thread."""
        return self._start(work).result()

    async def _begin(self) -> None:
        for address, reason in (await self._unequal()).items():
            name = self._workers[address].name if address in self._workers else address
            raise KineticsError(f"cannot use the dask cluster {self._address}: {name}: {reason}")
        self._client.subscribe_topic(TOPIC, self._on_event)
        self._coroutines.add(asyncio.ensure_future(self._watch_workers()))

    async def _end(self) -> None:
        coroutines = list(self._coroutines)
        for coroutine in coroutines:
            coroutine.cancel()
        await asyncio.gather(*coroutines, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_MAX_END):
                while any(worker in self._workers for worker in self._running.values()):
                    self._has_ended.clear()
                    await self._has_ended.wait()

    async def _watch_workers(self) -> None:
        """Keep the list of workers up to date."""
        was_empty = False
        while True:
            with suppress(OSError):  # without the scheduler, all jobs fail
                threads = await self._client.nthreads()
                if threads.keys() != self._workers.keys():
                    await self._list_workers()
                if not threads and not was_empty:
                    _log.warning("the dask cluster %s has no workers; waiting for the first one", self._address)
                was_empty = not threads
            await asyncio.sleep(_WATCH_INTERVAL)

    async def _list_workers(self) -> None:
        identity = await self._client.scheduler.identity(n_workers=-1)
        self._workers = {
            address: _Worker(str(worker["name"]), worker["nthreads"], worker["resources"].get(RESOURCE))
            for address, worker in identity["workers"].items()
        }

    async def _unequal(self) -> dict[str, str]:
        """Return the machines that have other versions of what must be the same, with the sentences that say so."""
        await self._list_workers()
        found = await self._client.get_versions(packages=[_PACKAGE])
        own = _versions(found["client"])
        unequal = {}
        for machine, info in {"the scheduler": found["scheduler"], **found["workers"]}.items():
            for package, version in _versions(info).items():
                if version != own[package]:
                    has = f"has {package} {version}" if version else f"has no {package}"
                    unequal[machine] = (
                        f"it {has}, and this machine has {own[package]}; install the same version on both"
                    )
                    break
        return unequal

    async def _do(self, job: ArchiveJob) -> Outcome:
        """Have a job done, and done again if a fault of the network or of a worker's machine has ended it."""
        coroutine = asyncio.current_task()
        assert coroutine is not None
        self._coroutines.add(coroutine)
        coroutine.add_done_callback(self._coroutines.discard)
        failures = 0
        for number in itertools.count(1):
            try:
                reply = await self._compute(job, number)
            except (KineticsError, asyncio.CancelledError):
                raise
            except Exception as error:  # such as that of a worker without kinetics-fs, which cannot read the task
                if not await self._set_aside_unequal():
                    raise FetchError(FailureKind.CONFIG, f"its dask task failed: {_text(error)}") from error
                continue
            try:
                return read_answer(reply["answer"])
            except FetchError as error:
                if error.kind is FailureKind.LOCAL:
                    self._set_aside(reply["worker"], reply["name"], error.reason)
                    continue
                failures += 1
                if error.kind is not FailureKind.TRANSIENT or failures == _MAX_TRIES:
                    raise
                _log.warning("%s: %s; trying it again", job.archive, error)
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (failures - 1))
        raise AssertionError

    async def _compute(self, job: ArchiveJob, number: int) -> Reply:
        """Have a job done by a task, and return its result.

        Args:
            job: the job.
            number: which try this is: dask remembers the result of a task under its key.
        """
        catalogs, digests = self._send_catalogs(job)
        packed = job.pack()
        key = f"fill-{job.archive}-{hashlib.sha256(f'{packed} {number}'.encode()).hexdigest()[:16]}"
        cache_dir = self._worker_cache_dir or str(job.cache_dir.absolute())
        self._jobs[key] = job
        try:
            while True:
                usable = {address: one for address, one in self._workers.items() if address not in self._unusable}
                # A task that wants what no worker has would wait for ever.
                restricted = len(usable) < len(self._workers)
                counted = bool(usable) and all(worker.archives is not None for worker in usable.values())
                future = self._client.submit(
                    do_job,
                    *(packed, cache_dir, catalogs, digests, self._versions),
                    key=key,
                    workers=[*usable] if restricted else None,
                    resources={RESOURCE: 1} if counted else None,
                )
                waiter = asyncio.ensure_future(self._result(future))
                try:
                    while not (await asyncio.wait({waiter}, timeout=_WATCH_INTERVAL))[0]:
                        if (restricted or counted) and not usable.keys() & self._workers.keys():
                            break
                    else:
                        return waiter.result()
                finally:
                    if not waiter.done():
                        waiter.cancel()
                        await future.cancel()
        finally:
            del self._jobs[key]

    async def _result(self, future: distributed.Future) -> Reply:
        try:
            reply: Reply = await future
        except FutureCancelledError as error:
            cause = (
                "lost the connection to it" if "connection" in error.reason else f"it cancelled a task ({error.reason})"
            )
            raise FetchError(
                FailureKind.LOCAL, f"dask scheduler {self._address}: {cause}; run the same command again to resume"
            ) from error
        except distributed.KilledWorker as error:
            raise FetchError(
                FailureKind.TRANSIENT,
                f"{error.allowed_failures + 1} dask workers died while they read it; see their logs, and run the same"
                " command again",
            ) from error
        self._running.pop(future.key, None)
        return reply

    def _send_catalogs(self, job: ArchiveJob) -> tuple[dict[str, distributed.Future], dict[str, str]]:
        """Return the contents of the catalogs of a job, which reach each worker once, and their digests by name."""
        paths = {job.catalog_file, job.unlisted.catalog_file if job.unlisted else None} - {None}
        contents, digests = {}, {}
        for path in paths:
            assert path is not None
            if path not in self._catalogs:
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                # Only the scheduler can give it to new workers when all others have died. It warns of large tasks.
                with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
                    self._catalogs[path] = digest, self._client.submit(hold, content, key=f"catalog-{digest}")
            digests[path.name], contents[path.name] = self._catalogs[path]
        return contents, digests

    def _set_aside(self, address: str, name: str, reason: str) -> None:
        """Give no further jobs to a worker.

        Raises:
            FetchError: there is no other one.
        """
        if address not in self._unusable:
            self._unusable[address] = reason
            _log.warning("dask worker %s gets no more archives: %s", name, reason)
        if self._workers and self._unusable.keys() >= self._workers.keys():
            raise FetchError(FailureKind.LOCAL, f"dask worker {name}: {reason}")

    async def _set_aside_unequal(self) -> bool:
        """Give no further jobs to workers with other versions, and return whether there are any that still got jobs."""
        unequal = {
            address: reason for address, reason in (await self._unequal()).items() if address not in self._unusable
        }
        for address, reason in unequal.items():
            self._set_aside(address, self._workers[address].name if address in self._workers else address, reason)
        return bool(unequal)

    def _on_event(self, event: tuple[float, Event]) -> None:
        """Handle an event of a task."""
        _, message = event
        key, done = message["key"], message["done"]
        if done < 0:
            self._running.pop(key, None)
            self._has_ended.set()
        elif (job := self._jobs.get(key)) is not None:
            self._running[key] = message["worker"]
            if message["total"]:
                self._report(job, done, message["total"])


def _absolute(location: str) -> str:
    """Return a location that means the same in every folder: an address, a path, or nothing."""
    return location if not location or "://" in location else str(Path(location).absolute())


def _connect(address: str) -> distributed.Client:
    if not re.fullmatch(r"(?:tcp|tls|wss?)://[^\s/@]+:[0-9]{1,5}", address):
        raise SettingError(
            f"cannot use {masked(address)!r} as --dask: it is not the address of a scheduler; give one such as"
            " tcp://scheduler:8786"
        )
    if address.startswith(("tls:", "wss:")) and not _has_certificates():
        raise KineticsError(
            f"cannot use the dask scheduler {address}: this machine has no certificate for it; configure"
            " distributed.comm.tls of dask"
        )
    for name in ("distributed.client", "distributed.utils"):  # they log what they raise, with tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # Versions are compared below, in one sentence.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            return distributed.Client(address, timeout=_CONNECT_TIMEOUT, set_as_default=False, name="kinetics-fs")
    except OSError as error:
        raise KineticsError(
            f"cannot use the dask scheduler {address}: no answer ({root_cause(error)}); check the address, and that the"
            " scheduler runs"
        ) from error


def _has_certificates() -> bool:
    try:
        return distributed.Security().get_connection_args("client").get("ssl_context") is not None
    except OSError as error:  # of a file that does not exist, or is not a certificate
        raise KineticsError(
            f"cannot read the TLS certificates of dask: {root_cause(error)}; correct distributed.comm.tls"
        ) from error


def _versions(info: Mapping[str, Any]) -> dict[str, str | None]:
    packages = info["packages"]
    return {
        _PACKAGE: packages[_PACKAGE],
        "Python": ".".join(packages["python"].split(".")[:2]),
        "dask": packages["dask"],
        "distributed": packages["distributed"],
    }


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
