"""Kills an act at every point at which it changes a folder: cheap, beside the tests that kill a process at random moments."""

import os
from collections.abc import Callable, Iterator
from typing import Any

POINTS = ("replace", "fsync", "rename", "unlink", "rmdir")
"""Functions of `os` by which a folder changes: a process is killed before each call."""


def _kill_at(number: int) -> None:
    """Let this process end without a trace before the `number`-th call of one of POINTS."""
    left = [number]

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def ends(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return call(*arguments, **named)

        return ends

    for name in POINTS:
        setattr(os, name, wrapped(getattr(os, name)))


def killed_at_points(act: Callable[[], object], every: int) -> Iterator[int]:
    """Call `act` in forks of this process that are killed at every n-th point; yield after each, until one ends by itself."""
    for number in range(0, 1000, every):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _kill_at(number)
                act()
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        yield number
        if status == 0:
            return
