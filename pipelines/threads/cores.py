"""How many cores this process may use: its CPU affinity and the quotas of its control groups, of both versions, bound them."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process can keep busy: its CPU affinity, or the quota of its container if that is less.

    At least 1. Part of a core does not count: a thread more than the quota holds is stopped in every period, and the others wait
    for it. `root` is the folder with `proc` and `sys`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, _cpu_quota(root))))


def warn_of_too_many_threads(threads: int) -> None:
    """Print one line if `threads` are more than the cores that this process may use; nothing is changed."""
    if threads > (cores := usable_cores()):
        print(
            f"warning: {threads} threads on {cores} usable core{'s' if cores > 1 else ''} (CPU affinity, container quota) wait for "
            "each other; results depend on their number (compute.threads), so it is kept",
            file=sys.stderr,
            flush=True,
        )


def _cpu_quota(root: Path) -> float:
    """Return the smallest quota, in cores, of this process's control group and of those that hold it; infinite without one."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        folders = [folder for group in groups for mount in mounts for folder in _group_folders(group, mount, root)]
        return min(map(_quota_of, folders), default=math.inf)
    except (OSError, ValueError):  # not Linux, or not as Linux writes them
        return math.inf


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
