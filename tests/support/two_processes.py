"""The same work in two gloo processes, as the ranks of a distributed training."""

import faulthandler
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from servers import free_port
from workspaces import forked

from pipelines.engine.forked import WARM

LIMIT = 240
"""Seconds after which a rank that still runs prints where each of its threads is, and ends."""
RANK = "import sys, two_processes; two_processes.rank(int(sys.argv[1]), *sys.argv[2:])"


def in_two_processes(work: Callable[..., Any], warm_address: str, *given: str) -> list[Any]:
    """What `work(rank, world_size, *given)`, a function of a module, returns on each rank: anything that torch saves."""
    environment = {**os.environ, WARM: warm_address, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.modules[work.__module__].__file__ or "").parent
        arguments = (str(path), work.__module__, work.__name__, folder, *given)
        ranks = [forked(RANK, str(number), *arguments, **environment) for number in range(2)]
        try:
            assert [process.wait(LIMIT + 10) for process in ranks] == [0, 0]
        finally:
            for process in ranks:
                process.kill()
        return [torch.load(Path(folder) / f"{number}.pt") for number in range(2)]


def rank(number: int, path: str, module: str, name: str, folder: str, *given: str) -> None:
    """The work of one rank, in its process; leaves its states in `folder`."""
    sys.path.append(path)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=2)
    try:
        torch.save(getattr(importlib.import_module(module), name)(number, 2, *given), Path(folder) / f"{number}.pt")
    finally:
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()
