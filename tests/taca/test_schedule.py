"""The temperature schedule against the paper's numbers and diffusers' own sampler."""

import math

import pytest
import torch

from components.errors import ParameterError
from components.taca.schedule import TemperatureSchedule, threshold_for_fraction, transfer_threshold


def flux_sigmas(steps: int, image_tokens: int) -> torch.Tensor:
    """A FLUX pipeline's noise levels, from the real scheduler with the published config."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    spaced = [1 - i / steps for i in range(steps)]  # the pipeline's linspace(1, 1/steps, steps)
    scheduler.set_timesteps(sigmas=spaced, mu=calculate_shift(image_tokens))
    return scheduler.sigmas


def fixed_shift_sigmas(steps: int, shift: float) -> torch.Tensor:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas


def test_gamma_is_a_step_function_of_each_samples_noise_level() -> None:
    sigma = torch.tensor([0.0, 0.5, 0.969, 0.97, 0.971, 1.0])
    gamma = TemperatureSchedule(1.2, 0.97).gamma_at(sigma)
    assert gamma.dtype == torch.float32
    assert gamma.tolist() == pytest.approx([1, 1, 1, 1.2, 1.2, 1.2])


# Columns: FLUX at 1024, 768, 512, 256 pixels, SD3 (shift 3), shift 1.
ACTIVE = {
    4: (1, 1, 1, 1, 1, 1),
    20: (2, 2, 2, 1, 2, 1),
    28: (3, 2, 2, 2, 3, 1),
    30: (3, 3, 2, 2, 3, 1),
    50: (5, 4, 3, 3, 5, 2),
}


@pytest.mark.parametrize("steps", ACTIVE)
def test_active_steps_of_real_samplers_are_those_of_the_published_table(steps: int) -> None:
    schedule = TemperatureSchedule(threshold=0.97)
    counted = [schedule.active_steps(flux_sigmas(steps, (side // 16) ** 2)) for side in (1024, 768, 512, 256)]
    counted += [schedule.active_steps(fixed_shift_sigmas(steps, shift)) for shift in (3.0, 1.0)]
    assert tuple(counted) == ACTIVE[steps]


@pytest.mark.parametrize(("threshold", "active"), [(0.97, 3), (0.95, 5), (0.93, 6), (0.0, 30), (1.0, 1)])
def test_a_lower_threshold_activates_more_of_fluxs_thirty_steps(threshold: float, active: int) -> None:
    assert TemperatureSchedule(threshold=threshold).active_steps(flux_sigmas(30, 4096)) == active


@pytest.mark.parametrize("image_tokens", [256, 1024, 4096])
def test_rounding_timesteps_to_half_precision_does_not_change_fluxs_active_steps(image_tokens: int) -> None:
    schedule, sigmas = TemperatureSchedule(threshold=0.97), flux_sigmas(30, image_tokens)
    exact = schedule.active_steps(sigmas)
    assert schedule.active_steps(sigmas, torch.bfloat16) == exact
    assert schedule.active_steps(sigmas, torch.float16) == exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_step_exactly_on_the_threshold_is_on_whatever_the_rounding(dtype: torch.dtype) -> None:
    for tick in range(500, 999):
        sigma = torch.tensor([float(tick)]).to(dtype) / 1000
        assert TemperatureSchedule(threshold=tick / 1000).is_active(sigma).item()
        assert not TemperatureSchedule(threshold=(tick + 2) / 1000).is_active(sigma).item()


def test_a_bfloat16_timestep_cannot_tell_970_from_966_and_active_steps_says_so() -> None:
    schedule = TemperatureSchedule(threshold=0.97)
    assert schedule.active_steps([0.97]) == 1
    assert schedule.active_steps([0.97], torch.bfloat16) == 0  # the documented limit


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 0.0},
        {"gamma": math.nan},
        {"gamma": math.inf},
        {"gamma": "1.2"},
        {"threshold": 970},
        {"threshold": -0.1},
        {"threshold": True},
        {"tolerance": -1e-3},
    ],
)
def test_a_wrong_setting_is_a_parameter_error_that_names_it(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        TemperatureSchedule(**wrong)


def test_a_schedule_survives_a_mapping_and_refuses_unknown_keys() -> None:
    schedule = TemperatureSchedule(1.3, 0.9)
    assert TemperatureSchedule.from_mapping(schedule.to_mapping()) == schedule
    with pytest.raises(ParameterError, match="t_thresh"):
        TemperatureSchedule.from_mapping({"gamma": 1.2, "t_thresh": 0.97})


@pytest.mark.parametrize(("tokens", "expected"), [(4096, 0.97), (1024, 0.942), (256, 0.890), (64, 0.802)])
def test_a_threshold_follows_the_resolution(tokens: int, expected: float) -> None:
    assert transfer_threshold(0.97, to_tokens=tokens) == pytest.approx(expected, abs=1e-3)


def test_a_threshold_transferred_by_shift_keeps_the_active_fraction_of_a_sampler() -> None:
    for target in (1.0, 2.0, 6.0):
        threshold = transfer_threshold(0.97, from_shift=3.0, to_shift=target)
        before = TemperatureSchedule(threshold=0.97).active_steps(fixed_shift_sigmas(200, 3.0))
        after = TemperatureSchedule(threshold=threshold).active_steps(fixed_shift_sigmas(200, target))
        assert abs(after - before) <= 1


@pytest.mark.parametrize(("shift", "expected"), [(3.16, 0.966), (3.0, 0.964), (1.0, 0.90)])
def test_the_first_tenth_of_the_steps_lies_above_a_threshold_that_depends_on_the_shift(
    shift: float, expected: float
) -> None:
    assert threshold_for_fraction(0.1, shift) == pytest.approx(expected, abs=1e-3)
