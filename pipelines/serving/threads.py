"""Threads for work that would block the event loop: bounded in number, in time, and in how many may wait for them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipelines.serving.answers import Refused

Result = TypeVar("Result")


class WorkThreads:
    """A pool of `threads`. A call is refused while `waiting` others wait, and is answered within `seconds` or refused then.

    A thread cannot be stopped: one whose caller has given up holds its place in the pool until it is done.
    """

    def __init__(self, name: str, threads: int, waiting: int, seconds: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = threads + waiting
        self._seconds = seconds
        self._taken = 0

    @property
    def is_full(self) -> bool:
        """Whether the next call would be refused."""
        return self._taken >= self._room

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns. Raises what it raises, or Refused (503)."""
        if self.is_full:
            raise Refused(503, "too many requests are waiting; try again", "busy")
        self._taken += 1
        future = self._pool.submit(work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release))
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done() and not future.cancelled():  # the work's own
                raise
            raise Refused(503, f"no answer within {self._seconds:g} seconds; try again", "time") from None

    def close(self) -> None:
        """Let no further work begin; what runs goes on."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _release(self) -> None:
        self._taken -= 1
