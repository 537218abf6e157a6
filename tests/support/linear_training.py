"""A training of four weights whose second worker may end: by one process, gloo processes, or Ray Train's workers."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from components.training.config import LoopConfig
from components.training.loop import fit
from components.training.randomness import generator
from components.training.task import TrainingTask
from pipelines.engine.context import StageContext
from pipelines.engine.execution import under_ray_train
from pipelines.schema.running import Compute
from pipelines.scratch.folder import Scratch

STEPS, DIES_AT = 8, 5
TOO_MUCH = 8 << 30
"""Bytes."""


class Linear(TrainingTask):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 1))

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        inputs, targets = batch
        return {"loss": (inputs @ self.weight - targets).square().mean()}


def end_at(how: str) -> None:
    if how == "loses its storage":
        raise OSError(errno.EIO, "Input/output error")
    if how == "takes all memory":
        held = bytearray(b"x") * TOO_MUCH
        time.sleep(60)
        raise SystemExit(f"nobody minded {len(held)} bytes")
    os.kill(os.getpid(), signal.SIGKILL)


def work_in(folder: Path, end: str = "lives") -> Callable[..., dict[str, int]]:
    """The work of each rank. `folder` holds scratch, and afterwards the weights and a line for each start of a rank."""

    def work(rank: int, world_size: int, on_save: Callable[..., None]) -> dict[str, int]:
        def batches(step: int) -> tuple[Tensor, Tensor]:
            if end != "lives" and rank == 1 and step == DIES_AT and not (folder / "died").exists():
                (folder / "died").touch()
                end_at(end)
            inputs = torch.randn(8, 4, generator=generator(0, "batch", step)).chunk(world_size)[rank]
            return inputs, inputs.sum(1, keepdim=True)

        torch.set_num_threads(1)
        context = StageContext(
            Scratch(folder / "scratch"), seed=0, arm=None, device=torch.device("cpu"), rank=rank,
            world_size=world_size, on_save=on_save,
        )  # fmt: skip
        task = Linear()
        with open(folder / f"starts-{rank}", "a") as file:
            file.write(f"{world_size} {(context.load() or (0,))[0]}\n")
        config = LoopConfig(steps=STEPS, learning_rate=0.1, report_every=1, checkpoint_every=2)
        fit(task, batches, config, context)
        if rank == 0:
            save_file(task.state_dict(), folder / "weights.safetensors")
        return {"rank": rank}

    return work


def on_rank(rank: int, world_size: int, folder: str) -> dict[str, int]:
    """The work without Ray, for `in_two_processes`."""
    return work_in(Path(folder))(rank, world_size, lambda metrics: None)


def main() -> None:
    """Train with two workers under Ray. Arguments: a folder, and how the second one ends: "lives", "is killed" and so on."""
    folder, end = Path(sys.argv[1]), sys.argv[2]
    Scratch(folder / "scratch").begin()
    compute = Compute(workers=2, threads=1, device="cpu", max_failures=1)
    found = under_ray_train(work_in(folder, end), compute, folder)
    (folder / "returned.json").write_text(json.dumps(found))
