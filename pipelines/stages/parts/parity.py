"""Runs a training stage with a given number of workers in a temporary scratch folder, for its losses."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.engine.context import StageContext
from pipelines.engine.execution import under_ray_train
from pipelines.params import Parameters
from pipelines.schema.running import Compute
from pipelines.scratch.folder import Scratch
from pipelines.scratch.metric_log import MetricLog


def train_losses(
    function: Callable[..., Any],
    arm: str,
    params: Parameters,
    inputs: Mapping[str, Path],
    context: StageContext,
    workers: int,
) -> dict[int, float]:
    """Run a training stage and return its reported loss by step. `workers` 0 trains in this process; each worker has one thread."""
    device = common_device(context, params.train_parity.workers)
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        scratch = Scratch(Path(folder) / "scratch")
        scratch.begin()

        def on_rank(rank: int, world_size: int, on_save: Callable[[Mapping[str, float]], None]) -> dict[str, Any]:
            torch.set_num_threads(1)
            here = StageContext(
                scratch, seed=context.seed, arm=arm, device=device, rank=rank, world_size=world_size, on_save=on_save
            )
            written = Path(folder) / f"rank-{rank}"
            written.mkdir()
            function(params, inputs, {"adapter": written / "adapter", "model": written / "model"}, here)
            return {}

        kind: Any = device.type
        under_ray_train(on_rank, Compute(workers=workers, threads=1, device=kind, max_failures=0), scratch.folder)
        lines = MetricLog(scratch.metrics_file).read()
    return {line["step"]: value for line in lines for key, value in line["metrics"].items() if key.endswith("/loss")}


def common_device(context: StageContext, workers: int) -> torch.device:
    """Return the stage's device, or the CPU where not every worker has a GPU, because both curves need the same kind of device."""
    if context.device.type == "cuda" and torch.cuda.device_count() < workers:
        return torch.device("cpu")
    return context.device
