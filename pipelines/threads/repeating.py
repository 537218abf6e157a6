"""A call that is repeated beside the work of this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(call: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call `call` every `seconds` in a thread inside the block; it must not raise. None is under way when the block has ended."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
