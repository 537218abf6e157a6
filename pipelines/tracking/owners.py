"""Which process owns a run: tags that name it, and whether it still runs. A run of a dead process is ended by the next one."""

import os
import socket
from collections.abc import Mapping

import psutil

from pipelines.locks.machine import installation, visible_from


def owner() -> dict[str, str]:
    """Return tags that identify this process, even when its number is used again."""
    return {
        "pipelines.host": socket.gethostname(),
        "pipelines.visible_from": visible_from(),
        "pipelines.pid": str(os.getpid()),
        "pipelines.started": f"{psutil.Process().create_time():.1f}",
        **({"pipelines.machine": machine} if (machine := installation()) else {}),
    }


def is_alive(tags: Mapping[str, str]) -> bool:
    """Return whether the process of these tags still runs, and is not another one with its number."""
    pid = int(tags.get("pipelines.pid", "0"))
    try:
        started = psutil.Process(pid).create_time() if pid > 0 else None
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    return started is not None and abs(started - float(tags.get("pipelines.started", started))) < 2
