"""Ends a process with the process that started it, so that no worker outlives its supervisor.

Used by stage workers, job submitters, trials and workers of studies. Two need no thread: the warm process, which must not have one
before it forks, polls its standard input itself; actors of Ray are ended by Ray when their driver is gone.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable

from pipelines.errors import TRY_AGAIN


def end_with_parent(end: Callable[[], object] = lambda: os._exit(TRY_AGAIN)) -> None:
    """Call `end`, in a thread, when the process that started this one has ended or closed this one's standard input."""
    parent = multiprocessing.parent_process()  # None unless `multiprocessing` started this process
    wait: Callable[[], object] = parent.join if parent else sys.stdin.read

    def watch() -> None:
        wait()
        end()

    threading.Thread(target=watch, daemon=True).start()
