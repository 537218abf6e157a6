"""Threads of the processes that compute: how many cores there are for them, and the environment that libraries read on import."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables with which a user chooses how OpenMP's threads wait; one that is set replaces all of ours."""


def thread_settings(threads: int) -> dict[str, str]:
    """Return environment variables that libraries read on import: sizes of thread pools, how their threads wait, progress bars.

    Results depend on the number of threads, so it replaces what the environment says.
    """
    quiet = {} if sys.stderr.isatty() else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **waiting_settings(), **quiet}


def waiting_settings() -> dict[str, str]:
    """Return environment variables with which a thread that waits for others soon sleeps; those of the user where they are set.

    By default OpenMP's threads spin for milliseconds at each barrier, and OpenBLAS's after each product. On a core that another
    process needs too, a thread that spins delays the one that it waits for. No result depends on these settings. torch loads GNU's
    OpenMP on Linux, for which the number of spins counts: some microseconds, in which most threads arrive. Others (LLVM's, Intel's)
    read the policy.
    """
    chosen = {name: os.environ[name] for name in OPENMP_WAITING if name in os.environ}
    openmp = chosen or {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    return {
        **openmp,
        "OPENBLAS_THREAD_TIMEOUT": os.environ.get("OPENBLAS_THREAD_TIMEOUT", "10"),
    }  # 2^10 cycles, not 2^26


def warn_of_too_many_threads(threads: int) -> None:
    """Print one line if `threads` are more than the cores that this process may use; nothing is changed."""
    if threads > (cores := usable_cores()):
        print(
            f"warning: {threads} threads on {cores} usable core{'s' if cores > 1 else ''} (CPU affinity, container quota) wait for "
            "each other; results depend on their number (compute.threads), so it is kept",
            file=sys.stderr,
            flush=True,
        )


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process can keep busy: its CPU affinity, or the quota of its container if that is less.

    At least 1. Part of a core does not count: a thread more than the quota holds is stopped in every period, and the others wait
    for it. `root` is the folder with `proc` and `sys`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, _cpu_quota(root))))


def _cpu_quota(root: Path) -> float:
    """Return the smallest quota, in cores, of this process's control group and of those that hold it; infinite without one."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return math.inf
    quotas = [
        _quota_of(folder) for group in groups for mount in mounts for folder in _group_folders(group, mount, root)
    ]
    return min(quotas, default=math.inf)


def _group_folders(group: str, mount: str, root: Path) -> Iterator[Path]:
    """Yield the folder of `group` (a line of /proc/self/cgroup) and those above it, if `mount` (of mountinfo) shows its hierarchy.

    A container may see only a part of the hierarchy, mounted as if it were the whole; its group is there under its full name, or
    under one that leads outside.
    """
    _, controllers, name = group.split(":", 2)
    about, _, source = mount.partition(" - ")
    kind, _, options = source.split(" ", 2)
    shown, point = about.split(" ")[3:5]
    version_2 = kind == "cgroup2" and not controllers
    if not version_2 and not (kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options.split(",")):
        return
    inside, top = PurePosixPath(name), root / point.lstrip("/")
    below = inside.relative_to(shown) if inside.is_relative_to(shown) and ".." not in inside.parts else PurePosixPath()
    for part in (below, *below.parents):
        yield top / part


def _quota_of(folder: Path) -> float:
    """Return the CPU quota of one group in cores, infinite without one; version 2 says "max", version 1 says -1."""
    try:
        if (version_2 := folder / "cpu.max").exists():
            quota, period = version_2.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{part}_us").read_text().strip() for part in ("quota", "period"))
    except OSError:  # the root group has none
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
