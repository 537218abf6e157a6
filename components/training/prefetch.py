"""Reads what the next steps need while a step is computed, in threads of the training process.

What a step reads is a function of its number, so reading ahead changes no byte, and there is no state to checkpoint. Threads are
enough: Pillow decodes and resizes, and Parquet is read, without the interpreter lock. (`pipelines.streaming` reads in processes,
because it also tokenises.)
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Returns `read(step)`; `threads` threads meanwhile read as many steps after it, up to `steps` (None: without end).

    `read` must be safe to call from several threads. An error of `read` is raised by the call for its step. Use as a context
    manager: at its end, the threads have ended.
    """

    def __init__(self, read: Callable[[int], T], *, steps: int | None = None, threads: int = 1) -> None:
        self._read, self._steps, self._threads = read, steps, threads
        self._pool: ThreadPoolExecutor | None = None
        self._futures: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="prefetch")
        ahead = range(step, step + 1 + self._threads)
        for other in set(self._futures) - set(ahead):  # after a jump
            self._futures.pop(other).cancel()
        for wanted in ahead:
            if wanted not in self._futures and (wanted == step or self._steps is None or wanted < self._steps):
                self._futures[wanted] = self._pool.submit(self._read, wanted)
        return self._futures.pop(step).result()

    def close(self) -> None:
        """End the threads, after what they are reading; a later call starts them again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool, self._futures = None, {}

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()
