"""A lock that one process of this machine holds at a time; the kernel lets go when it dies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import InfrastructureError

POLL_SECONDS = 0.05


@contextmanager
def exclusive(file: Path, refusal: str, wait: float = 0.0) -> Iterator[None]:
    """Hold `file`, made with its folder.

    Raises InfrastructureError with the line `refusal` when another process still holds it after `wait` seconds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    with open(file, "a+") as opened:
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InfrastructureError(refusal) from None
            time.sleep(POLL_SECONDS)
        yield
