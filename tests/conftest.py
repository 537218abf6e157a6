"""A copy of this checkout, as somebody else would have it."""

import gc
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from repositories import make_repository

from pipelines.threads.settings import waiting_settings

os.environ.update(waiting_settings())  # before any test loads libraries, and for every process that tests start
# No test loses power, and each of thousands of calls would wait some milliseconds for the disk.
os.fsync = lambda descriptor: None
# A suite that a shell started in the background inherits an ignored SIGINT, and so would every process that a test interrupts.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["workspaces"]
"""Fixtures of `tests/support/workspaces.py`."""
ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that two test processes end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """The libraries stay to the end: what they consist of is not searched for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Numbers that a test draws without a generator of its own do not depend on the tests before it, nor on the hour."""
    random.seed(0)
    for name, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if name in sys.modules:  # most tests need neither, and importing them takes seconds
            getattr(sys.modules[name], seed)(0)


def _copy(folder: Path) -> Path:
    """Every file that git knows or would add, committed in a new repository at `folder`."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    folder.mkdir(parents=True)
    with tarfile.open(folder / ".files.tar", "w") as archive:
        for name in filter(None, names):
            if (ROOT / name).is_file():
                archive.add(ROOT / name, name)
    with tarfile.open(folder / ".files.tar") as archive:
        archive.extractall(folder, filter="data")
    (folder / ".files.tar").unlink()
    return make_repository(folder)


@pytest.fixture(scope="session")
def copy_of_the_checkout() -> Callable[[Path], Path]:
    """Makes one in the folder it is given, which must not exist."""
    return _copy
