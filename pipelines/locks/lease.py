"""A lease: a file that shows processes on other machines who works in a folder.

`flock` decides between processes of one machine, but many network file systems keep it to that machine. So the holder also writes a
small file and renews it. A waiting machine watches the file: while it changes, its holder is alive; after `stale` seconds without a
change, the lease is taken over. Only the watcher's own monotonic clock counts, so machines may disagree about the time of day. A
holder that finds another token in the file has lost the lease, and must stop.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from components.files import temporary_beside, written_atomically
from pipelines.errors import InfrastructureError
from pipelines.locks.machine import machine_id

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
HOW_TO_WAIT = "run again later, or wait longer with PIPELINES_LOCK_TIMEOUT"


@dataclass(frozen=True)
class Holder:
    """The content of a lease file. `beat` counts its renewals."""

    token: str
    machine: str
    host: str
    pid: int
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def read_lease(path: Path) -> Holder | None:
    """Return the content of a lease file, or None without one that can be read."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Unreadable:
    """A lease file that is there and cannot be read: torn by a power loss, or of other code. It changes while its holder lives."""

    size: int
    mtime_ns: int

    def __str__(self) -> str:
        return "another process, whose lease cannot be read,"


def _watched(path: Path) -> Holder | Unreadable | None:
    """Return what changes with each renewal of a lease file, or None without a file."""
    if found := read_lease(path):
        return found
    with suppress(OSError):
        status = path.stat()
        return Unreadable(status.st_size, status.st_mtime_ns)
    return None


class Lease:
    """The lease in one file, held from `acquire` to `release`."""

    def __init__(self, path: Path, *, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.path = path
        self.beat = beat
        self.stale = stale
        self.lost = False
        self._holder = Holder(uuid.uuid4().hex, machine_id(), socket.gethostname(), os.getpid())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    @property
    def token(self) -> str:
        return self._holder.token

    def acquire(self, timeout: float) -> None:
        """Wait for the lease. Call with the folder's flock held: a lease of this machine is then a dead process's.

        Raises InfrastructureError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        seen: Holder | Unreadable | None = None
        since = time.monotonic()
        warned = False
        while not self._try(seen, since):
            found = _watched(self.path)
            if found != seen:
                seen, since = found, time.monotonic()
            if time.monotonic() > deadline:
                who = seen or "another process"
                raise InfrastructureError(f"{who} still works in {self.path.parent}: {HOW_TO_WAIT}")
            if found and not warned:
                warned = True
                print(f"waiting: {found} holds {self.path.parent}", file=sys.stderr, flush=True)
            time.sleep(min(1.0, self.beat / 2))
        self._thread.start()

    def _try(self, seen: Holder | Unreadable | None, since: float) -> bool:
        found = _watched(self.path)
        if found is None:
            return self._create()
        if isinstance(found, Holder) and found.machine == self._holder.machine:
            self._write()
            return True
        if found != seen or time.monotonic() - since < self.stale:
            return False
        self._write()
        time.sleep(self.beat / 2)  # another watcher may have decided the same: the last to write has the lease
        return self._is_own(read_lease(self.path))

    def require(self) -> None:
        """Raise InfrastructureError when another process has taken the lease over (this one was stopped for too long)."""
        found = read_lease(self.path)
        if self.lost or (found and not self._is_own(found)):
            self.lost = True
            raise InfrastructureError(
                f"{found or 'another process'} has taken over {self.path.parent}, as this process did not renew its lease for "
                f"{self.stale:.0f} s: run again, to wait for its result"
            )

    def release(self) -> None:
        """Stop renewing, and remove the file if it is still this process's."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._is_own(read_lease(self.path)):
            self.path.unlink(missing_ok=True)

    def _is_own(self, found: Holder | None) -> bool:
        return found is not None and found.token == self._holder.token

    def _renew(self) -> None:
        while not self._stop.wait(self.beat):
            found = _watched(self.path)
            if isinstance(found, Holder) and not self._is_own(found):
                self.lost = True
                return
            with suppress(OSError):  # the storage is away or full; when it is back, the token tells whose lease it is
                self._write() if found else self._create()

    def _create(self) -> bool:
        """Write the file if there is none, in one step that only one process can take."""
        temporary = temporary_beside(self.path)
        try:
            with open(temporary, "w") as file:
                file.write(self._next_beat())
                file.flush()
                os.fsync(file.fileno())  # after a power loss the name must not be there without the content
            try:
                os.link(temporary, self.path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links: not atomic, but `require` finds out
                if self.path.exists():
                    return False
                os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _write(self) -> None:
        """Replace the file. Creates no folder: one whose storage is away must not come back empty."""
        with written_atomically(self.path) as temporary:
            temporary.write_text(self._next_beat())

    def _next_beat(self) -> str:
        self._holder = replace(self._holder, beat=self._holder.beat + 1)
        return json.dumps(asdict(self._holder))
