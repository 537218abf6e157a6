"""A lock that one process of this machine holds at a time; the kernel releases it when the process dies."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import InfrastructureError

POLL_SECONDS = 0.05


@contextmanager
def file_lock(file: Path, refusal: str, timeout: float = 0.0) -> Iterator[None]:
    """Hold a lock on `file`, which is created with its folder.

    Raises InfrastructureError with the message `refusal` when another process still holds it after `timeout` seconds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as opened:
        if acquire(opened.fileno(), timeout) is None:
            raise InfrastructureError(refusal)
        yield


def acquire(descriptor: int, timeout: float, on_wait: Callable[[], None] = lambda: None) -> float | None:
    """Lock an open file. Return the seconds waited, or None when another process still holds it after `timeout` seconds.

    `on_wait` is called once, before the first wait.
    """
    started, waiting = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return time.monotonic() - started
        except BlockingIOError:
            if time.monotonic() - started >= timeout:
                return None
        if not waiting:
            waiting = True
            on_wait()
        time.sleep(POLL_SECONDS)
