"""The losses of a training stage, run by a given number of workers in a scratch folder of its own."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.context import StageContext
from pipelines.execution import under_ray_train
from pipelines.params import Compute, Parameters
from pipelines.reported import MetricLog
from pipelines.scratch import Scratch


def losses_of(
    function: Callable[..., Any],
    arm: str,
    params: Parameters,
    inputs: Mapping[str, Path],
    context: StageContext,
    workers: int,
) -> dict[int, float]:
    """The reported training loss by step. `workers` 0 trains in this process; each worker has one thread."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        scratch = Scratch(Path(folder) / "scratch")
        scratch.begin()

        def work(rank: int, world_size: int, on_save: Callable[[Mapping[str, float]], None]) -> dict[str, Any]:
            torch.set_num_threads(1)
            here = StageContext(
                scratch,
                seed=context.seed,
                arm=arm,
                device=context.device,
                rank=rank,
                world_size=world_size,
                on_save=on_save,
            )
            written = Path(folder) / f"rank-{rank}"
            written.mkdir()
            function(params, inputs, {"adapter": written / "adapter", "model": written / "model"}, here)
            return {}

        device: Any = context.device.type
        under_ray_train(work, Compute(workers=workers, threads=1, device=device, max_failures=0), scratch.folder)
        lines = MetricLog(scratch.reported).read()
    return {line["step"]: value for line in lines for key, value in line["metrics"].items() if key.endswith("/loss")}
