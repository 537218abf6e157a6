"""Train the same steps in one process and with Ray Train workers, and compare the loss curves.

The only stage that always starts Ray processes. It shows that local mode and workers compute the same.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages import gadms_pretrain, taca_train
from pipelines.stages.parts.parity import train_losses

TRAININGS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "taca": (taca_train.run, "taca", "taca_train"),
    "gadms": (gadms_pretrain.run, "gadms", "gadms_pretrain"),
}


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    function, arm, section = TRAININGS[context.arm or ""]
    settings = params.train_parity
    own = getattr(params, section)
    training = replace(own.training, steps=settings.steps, report_every=1, checkpoint_every=settings.steps)
    changes: dict[str, Any] = {"training": training}
    if section == "gadms_pretrain":  # half of the steps with the masked objectives, which are the point
        changes["method"] = replace(own.method, warmup_steps=settings.steps // 2)
    shortened = params.model_copy(update={section: own.model_copy(update=changes)})
    local, distributed = (
        train_losses(function, arm, shortened, inputs, context, workers) for workers in (0, settings.workers)
    )
    with open(outputs["parity"], "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "local", f"workers_{settings.workers}"])
        writer.writerows([step, local[step], distributed[step]] for step in sorted(local))
    worst = max(abs(local[step] - distributed[step]) / abs(local[step]) for step in local)
    return {"steps": len(local), "workers": settings.workers, "largest_relative_difference": worst}
