"""The FUSE operations with a trace: see `kinetics_fs.mount.trace`."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import Future

from kinetics_fs.mount.native import protocol as p
from kinetics_fs.mount.native.operations import Loop, OpcodeHandler, Operations
from kinetics_fs.mount.native.passthrough import Passthrough
from kinetics_fs.mount.trace import errno_name, log_operation
from kinetics_fs.vfs import Filesystem, Handle


class TracedOperations(Operations):
    """Operations that log one line each. The open of a clip that is fetched logs two: when it is parked and answered.

    Args:
        filesystem: see `Operations`.
        loop: see `Operations`.
        passthrough: see `Operations`.
    """

    def __init__(self, filesystem: Filesystem, loop: Loop, passthrough: Passthrough) -> None:
        super().__init__(filesystem, loop, passthrough)
        self._opens: dict[int, tuple[int, float]] = {}
        """Request id of a parked open → inode number and time of the request, by the monotonic clock."""
        self.handlers = {opcode: self._trace(opcode, self.handlers.get(opcode, _refuse)) for opcode in p.Opcode}

    def _trace(self, opcode: p.Opcode, handler: OpcodeHandler) -> OpcodeHandler:
        def traced(header: p.InHeader, body: memoryview) -> bytes | None:
            begin = time.perf_counter()
            result = "ok"
            try:
                payload = handler(header, body)
                result = _result(opcode, payload)
                if opcode == p.Opcode.OPEN and payload is None:
                    result = "waits"
                    self._opens[header.unique] = header.nodeid, begin
            except Exception as error:
                result = errno_name(error)
                raise
            else:
                return payload
            finally:
                log_operation(opcode.name, _target(opcode, header, body), result, time.perf_counter() - begin)

        return traced

    def _finish_open(self, unique: int, ino: int, uid: int) -> int | None:
        code = super()._finish_open(unique, ino, uid)
        if code is not None:
            self._log_parked(unique, errno.errorcode[code] if code else "ok")
        return code

    def _give_up(self, unique: int, opened: Future[Handle]) -> None:
        super()._give_up(unique, opened)
        if unique not in self._parked:
            self._log_parked(unique, "EINTR")

    def _log_parked(self, unique: int, result: str) -> None:
        ino, begin = self._opens.pop(unique)
        log_operation("OPEN", str(ino), f"{result} after waiting", time.perf_counter() - begin)


def _refuse(header: p.InHeader, _body: memoryview) -> bytes | None:
    """Fail as the loop does with an opcode that has no handler."""
    raise OSError(errno.EROFS if header.opcode in p.CHANGES else errno.ENOSYS, "not implemented")


def _target(opcode: p.Opcode, header: p.InHeader, body: memoryview) -> str:
    """Return the inode number of a request, and the name in it if there is one."""
    name = b""
    if opcode == p.Opcode.LOOKUP:
        name = bytes(body)
    elif opcode == p.Opcode.GETXATTR:
        name = bytes(body[p.GETXATTR_IN.size :])
    return f"{header.nodeid} {os.fsdecode(name.rstrip(bytes(1)))!r}" if name else str(header.nodeid)


def _result(opcode: p.Opcode, payload: bytes | None) -> str:
    if payload is None:
        return "ok"
    if opcode == p.Opcode.LOOKUP and not p.ENTRY_OUT.unpack(memoryview(payload)).nodeid:
        return "ENOENT"
    return f"{len(payload)} bytes"
