"""One `python -m pipelines repro` at a time in a checkout, and what a DVC that was killed leaves in the way.

DVC drops entries of dead processes from `.dvc/tmp/rwlock`, but neither a torn file nor entries whose process id another program has
now. Those are removed here.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipelines.errors import InfrastructureError
from pipelines.locks.file_lock import acquire
from pipelines.locks.lease import HOW_TO_WAIT
from pipelines.locks.waiting import lock_timeout


@contextmanager
def checkout_lock(root: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of the checkout in `root`; it is released when this process dies.

    Raises InfrastructureError when another one holds it: at once, or with `wait` after PIPELINES_LOCK_TIMEOUT seconds.
    """
    folder = root / ".dvc" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "repro.lock", "a+") as file:
        _lock(file.fileno(), root, lock_timeout() if wait else 0.0)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        drop_stale_entries(folder / "rwlock")
        yield


def _lock(descriptor: int, root: Path, timeout: float) -> None:
    def who() -> str:
        return f"process {os.pread(descriptor, 20, 0).decode() or 'another'} runs `pipelines repro` in {root}"

    def say() -> None:
        print(f"waiting: {who()}", file=sys.stderr, flush=True)

    if acquire(descriptor, timeout, say) is None:
        fix = HOW_TO_WAIT if timeout else "wait for it, say --wait, or use another checkout (they share results)"
        raise InfrastructureError(f"{who()}: {fix}")


def drop_stale_entries(path: Path) -> None:
    """Remove DVC's file of read and write locks when it is torn, or names no running DVC."""
    try:
        entries = json.loads(path.read_text())
        holders = {info["pid"] for infos in entries.get("read", {}).values() for info in infos}
        holders |= {info["pid"] for info in entries.get("write", {}).values()}
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        print(f"warning: {path} is torn; removed", file=sys.stderr, flush=True)
        path.unlink(missing_ok=True)
        return
    if holders and not any(_is_dvc(pid) for pid in holders):
        print(f"warning: {path} names no running DVC; removed", file=sys.stderr, flush=True)
        path.unlink(missing_ok=True)


def _is_dvc(pid: Any) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in psutil.Process(int(pid)).cmdline()[:4])
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
