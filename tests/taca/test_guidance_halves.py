"""The switch for the unconditional half of guidance, in real pipelines that run it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipelines import small_auraflow_pipeline, small_flux_pipeline, small_qwen_pipeline, small_sd3_pipeline
from torch import Tensor

from components.taca import TemperatureSchedule, enable_taca, observe_attention
from components.taca.registry import conventions_of

STEPS = 3


def applied(pipe: Any, schedule: TemperatureSchedule, guidance: float) -> list[list[float]]:
    """The largest gamma of each sample of each transformer call that was at an active step, while one prompt is drawn."""
    calls: list[list[float]] = []

    def observer(layer: str, query: Tensor, key: Tensor, text: slice, gamma: Tensor | None, *rest: Any) -> None:
        if layer.endswith("transformer_blocks.0.attn") and not layer.startswith("single") and gamma is not None:
            samples = gamma.expand(query.shape[0], -1, -1, -1)
            calls.append([round(value, 3) for value in samples.flatten(1).amax(1).tolist()])

    enable_taca(pipe, schedule)
    with observe_attention(pipe, observer):
        pipe(
            prompt=["a woman"],
            negative_prompt=[""] if guidance > 1 else None,
            **conventions_of(pipe).guidance_arguments(pipe, guidance, 1.0),
            height=32,
            width=32,
            num_inference_steps=STEPS,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )
    return calls


@pytest.mark.parametrize("build", [small_flux_pipeline, small_qwen_pipeline])
@pytest.mark.parametrize("spared", [True, False])
def test_pipelines_of_two_passes(build: Any, spared: bool, tmp_path: Path) -> None:
    pipe = build(tmp_path)
    schedule = TemperatureSchedule(1.5, form="constant", unconditional=not spared)
    assert applied(pipe, schedule, 3.0) == [[1.5], [1.0 if spared else 1.5]] * STEPS
    assert applied(pipe, schedule, 1.0) == [[1.5]] * STEPS


@pytest.mark.parametrize("build", [small_sd3_pipeline, small_auraflow_pipeline])
@pytest.mark.parametrize("spared", [True, False])
def test_pipelines_of_one_batch_with_the_unconditional_half_first(build: Any, spared: bool, tmp_path: Path) -> None:
    pipe = build(tmp_path)
    schedule = TemperatureSchedule(1.5, form="constant", unconditional=not spared)
    assert applied(pipe, schedule, 3.0) == [[1.0 if spared else 1.5, 1.5]] * STEPS
    assert applied(pipe, schedule, 1.0) == [[1.5]] * STEPS
