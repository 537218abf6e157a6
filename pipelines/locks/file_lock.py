"""A lock that one process of this machine holds at a time; the kernel lets go when it dies."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import InfrastructureError

POLL_SECONDS = 0.05


@contextmanager
def file_lock(file: Path, refusal: str, wait: float = 0.0) -> Iterator[None]:
    """Hold `file`, made with its folder.

    Raises InfrastructureError with the line `refusal` when another process still holds it after `wait` seconds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as opened:
        if acquire(opened.fileno(), wait) is None:
            raise InfrastructureError(refusal)
        yield


def acquire(descriptor: int, wait: float, begin_to_wait: Callable[[], None] = lambda: None) -> float | None:
    """Lock an open file. Returns the seconds waited, or None when it is another's after `wait` seconds.

    `begin_to_wait` is called once, when there is something to wait for and time to wait.
    """
    started, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return time.monotonic() - started
        except BlockingIOError:
            if time.monotonic() - started >= wait:
                return None
        if not said:
            said = True
            begin_to_wait()
        time.sleep(POLL_SECONDS)
