"""The temperature schedule against the paper's numbers and diffusers' own sampler."""

import json
import math

import pytest
import torch

from components.errors import ParameterError
from components.taca.schedule import TemperatureSchedule


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


def test_a_scheduler_counts_its_steps_after_set_timesteps_and_before_is_refused_in_one_line() -> None:
    from diffusers import DEISMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

    flow = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    schedulers = [FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchHeunDiscreteScheduler(shift=3.0)]
    for scheduler in [*schedulers, DEISMultistepScheduler(**flow)]:
        with pytest.raises(ParameterError, match="has no timesteps yet; call its set_timesteps first"):
            TemperatureSchedule().active_steps(scheduler)
        with pytest.raises(ParameterError, match="before set_timesteps"):
            TemperatureSchedule().active_steps(scheduler.sigmas)
        scheduler.set_timesteps(30)
        for given in (scheduler, scheduler.sigmas):
            assert TemperatureSchedule().active_steps(given) == 3
            assert TemperatureSchedule(form="constant").active_steps(given) == 30
    with pytest.raises(ParameterError, match="another unit"):
        TemperatureSchedule().active_steps([1000.0, 970.0, 0.0])


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
        {"form": "step"},
        {"effect": "scale"},
        {"queries": "both"},
        {"streams": []},
        {"streams": ["triple"]},
        {"layers": []},
        {"layers": [-1]},
    ],
)
def test_a_wrong_setting_is_a_parameter_error_that_names_it(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        TemperatureSchedule(**wrong)


SCHEDULES = [
    TemperatureSchedule(1.3, 0.9),
    TemperatureSchedule(1.3, 0.9, form="cosine", streams=("double",), layers=(0, 3), padding=False),
    TemperatureSchedule(1.1, unconditional=False, effect="bias", queries="text"),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_survives_a_mapping_through_json(schedule: TemperatureSchedule) -> None:
    assert TemperatureSchedule.from_mapping(json.loads(json.dumps(schedule.to_mapping()))) == schedule


def test_a_mapping_holds_the_paper_s_numbers_and_else_only_what_differs_from_the_default() -> None:
    assert TemperatureSchedule(1.3, 0.9).to_mapping() == {"gamma": 1.3, "threshold": 0.9, "tolerance": 5e-4}
    assert TemperatureSchedule(form="linear").to_mapping().keys() - TemperatureSchedule().to_mapping() == {"form"}


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ParameterError, match="t_thresh"):
        TemperatureSchedule.from_mapping({"gamma": 1.2, "t_thresh": 0.97})


FORMS = {
    "piecewise": lambda sigma: 1.5 if sigma >= 0.6 else 1.0,
    "constant": lambda sigma: 1.5,
    "linear": lambda sigma: 1 + 0.5 * max(0.0, (sigma - 0.6) / 0.4),
    "cosine": lambda sigma: 1 + 0.5 * (0.5 - 0.5 * math.cos(math.pi * max(0.0, (sigma - 0.6) / 0.4))),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_its_formula(form: str) -> None:
    sigma = torch.linspace(0, 1, 101)
    got = TemperatureSchedule(1.5, 0.6, form=form, tolerance=0.0).gamma_at(sigma)
    assert got.tolist() == pytest.approx([FORMS[form](value) for value in sigma.tolist()], abs=1e-6)


@pytest.mark.parametrize("form", ["linear", "cosine"])
def test_a_decaying_form_is_gamma_at_pure_noise_and_one_below_the_threshold(form: str) -> None:
    for threshold in (0.0, 0.97, 1.0):
        schedule = TemperatureSchedule(1.5, threshold, form=form)
        assert schedule.gamma_at(torch.ones(1)).item() == pytest.approx(1.5)
        assert schedule.gamma_at(torch.tensor([0.9 * threshold])).item() == pytest.approx(1.0)


def test_a_constant_schedule_is_active_at_every_step() -> None:
    assert TemperatureSchedule(threshold=0.97, form="constant").active_steps(fixed_shift_sigmas(30, 3.0)) == 30
