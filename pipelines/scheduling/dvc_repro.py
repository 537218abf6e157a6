"""`dvc repro`, one at a time in a checkout, with a warm process beside it (`pipelines.engine.warm`).

DVC locks the files of the running stage, and a second `dvc repro` fails at the first stage that both run. Here the second fails at
once, or waits. A DVC that was killed leaves entries in `.dvc/tmp/rwlock`: DVC drops those of dead processes, but neither a torn
file nor entries whose process id another program has now. Those are removed here.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from pipelines.engine.forked import WARM
from pipelines.engine.warm import start_warm_process
from pipelines.errors import InfrastructureError
from pipelines.locks.file_lock import acquire
from pipelines.locks.lease import HOW_TO_WAIT
from pipelines.locks.waiting import lock_timeout
from pipelines.params import load


def repro(root: Path, arguments: list[str], *, wait: bool) -> None:
    """Replace this process by `dvc repro <arguments>` in `root`, which holds the checkout's lock until it ends.

    Raises InfrastructureError when another one runs: at once, or with `wait` after PIPELINES_LOCK_TIMEOUT seconds.
    """
    threads = load(root / "params.yaml").compute.threads  # first: nothing is written to a folder that is no project
    folder = root / ".dvc" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "repro.lock", os.O_RDWR | os.O_CREAT, 0o644)
    _lock(lock, root, lock_timeout() if wait else 0.0)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    drop_stale_entries(folder / "rwlock")
    os.set_inheritable(lock, True)  # DVC keeps it open and closes it in the stages that it starts
    os.chdir(root)
    address, descriptor = start_warm_process("workers", threads)
    os.set_inheritable(descriptor, True)  # survives the exec; processes that DVC starts do not get it
    os.environ[WARM] = f"{threads}:{address}"
    sys.stdout.flush()
    program = shutil.which("dvc") or str(Path(sys.executable).parent / "dvc")
    os.execv(program, [program, "repro", *arguments])


def _lock(descriptor: int, root: Path, timeout: float) -> None:
    def who() -> str:
        return f"process {os.pread(descriptor, 20, 0).decode() or 'another'} runs `dvc repro` in {root}"

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
