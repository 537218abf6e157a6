"""The same work in two gloo processes, as the ranks of a distributed training."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Arrays = dict[str, dict[str, Any]]
"""Name -> a state as numpy arrays, which travel between processes without shared memory."""


def in_two_processes(
    work: Callable[[int, int], dict[str, dict[str, torch.Tensor]]],
) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What `work(rank, world_size)`, a function of a module, returns on each rank: named states."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    running = mp.spawn(_rank, (work, port, results), nprocs=2, join=False, start_method="spawn")
    found: list[Arrays] = [results.get() for _ in range(2)]
    running.join()
    return [
        {name: {key: torch.from_numpy(array) for key, array in state.items()} for name, state in states.items()}
        for states in found
    ]


def _rank(rank: int, work: Callable[[int, int], dict[str, dict[str, torch.Tensor]]], port: int, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        states = work(rank, 2)
        results.put({name: {key: tensor.numpy() for key, tensor in state.items()} for name, state in states.items()})
    finally:
        dist.destroy_process_group()
