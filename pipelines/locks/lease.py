"""A lease: who works in a folder, said so that another machine can tell.

`flock` settles it between processes of one machine, but many network file systems keep it to that machine. So the holder also
writes a small file and renews it. Another machine that finds one watches: a file that changes has a living holder; one that stays
as it is for `stale` seconds has none, and is taken over. Only the watcher's own monotonic clock counts, so machines may disagree
about the time of day. Whoever finds a foreign token in its file has lost the lease, and must stop.
"""

import json
import os
import platform
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.errors import InfrastructureError

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
TOO_LONG = "run again later, or wait longer with PIPELINES_LOCK_TIMEOUT"


def machine() -> str:
    """What tells this running kernel from every other: two hosts may share a name, and two containers share a kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{platform.node()}-{uuid.getnode()}"


class Lease:
    """The lease in one file, held from `take` to `release`."""

    def __init__(self, path: Path, *, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.path = path
        self.beat = beat
        self.stale = stale
        self.lost = False
        self._known = {
            "token": uuid.uuid4().hex,
            "machine": machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def acquire(self, timeout: float) -> None:
        """Wait until it is ours. Call with the folder's flock held: a lease of this machine is then a dead process's.

        Raises InfrastructureError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        seen, since = None, time.monotonic()
        said = False
        while not self._try(seen, since):
            found = holder(self.path)
            if found and not said:
                said = True
                print(f"waiting: {describe(found)} holds {self.path.parent}", file=sys.stderr, flush=True)
            if found != seen:
                seen, since = found, time.monotonic()
            if time.monotonic() > deadline:
                raise InfrastructureError(f"{describe(seen)} still works in {self.path.parent}: {TOO_LONG}")
            time.sleep(min(1.0, self.beat / 2))
        self._thread.start()

    def _try(self, seen: dict[str, Any] | None, since: float) -> bool:
        found = holder(self.path)
        if found is None:
            return self._create()
        if found["machine"] == self._known["machine"]:
            self._write()
            return True
        if found != seen or time.monotonic() - since < self.stale:
            return False
        self._write()
        time.sleep(self.beat / 2)  # another watcher may have come to the same conclusion: the last to write has it
        return self._is_ours()

    def require(self) -> None:
        """Raises InfrastructureError when somebody else has taken the lease over (this process or machine was stopped too long)."""
        found = holder(self.path)
        if self.lost or (found is not None and found["token"] != self._known["token"]):
            self.lost = True
            raise InfrastructureError(
                f"{describe(found)} has taken over {self.path.parent}, as nothing was heard from here for "
                f"{self.stale:.0f} s: run again, to wait for its result"
            )

    def release(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        found = holder(self.path)
        return found is not None and bool(found["token"] == self._known["token"])

    def _renew(self) -> None:
        while not self._stop.wait(self.beat):
            found = holder(self.path)
            if found is not None and found["token"] != self._known["token"]:
                self.lost = True
                return
            with suppress(OSError):  # the storage is away or full; when it is back, the token says whose it is
                self._write() if found else self._create()

    def _create(self) -> bool:
        """Write the file if there is none, in one step that only one process can take."""
        temporary = self._temporary()
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: nearly as good, and `require` tells the difference
            if self.path.exists():
                return False
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _write(self) -> None:
        os.replace(self._temporary(), self.path)

    def _temporary(self) -> Path:
        """The next beat, in a file of its own. Makes no folder: one that is away must not come back empty."""
        self._beats += 1
        temporary = self.path.with_name(f".{self.path.name}.{self._known['token']}")
        temporary.write_text(json.dumps({**self._known, "beat": self._beats}))
        return temporary


def holder(path: Path) -> dict[str, Any] | None:
    """What the lease's file says, or None without one."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def describe(found: dict[str, Any] | None) -> str:
    return f"process {found['pid']} on {found['host']}" if found else "another process"
