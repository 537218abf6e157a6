"""Thresholds carried from one model to another, against the paper's numbers and diffusers' own samplers."""

import pytest
import torch
from test_schedule import fixed_shift_sigmas, flux_sigmas

from components.errors import ParameterError
from components.taca.sampler import sampler_shift
from components.taca.schedule import TemperatureSchedule
from components.taca.transfer import resolve_threshold, threshold_for_fraction, threshold_for_steps, transfer_threshold


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


@pytest.mark.parametrize("steps", [4, 20, 28, 30, 50])
@pytest.mark.parametrize("active", [1, 2, 4])
def test_a_threshold_for_a_number_of_steps_switches_on_that_number_whatever_the_rounding(
    steps: int, active: int
) -> None:
    sigmas = flux_sigmas(steps, 4096)
    schedule = TemperatureSchedule(threshold=threshold_for_steps(sigmas, active))
    assert [schedule.active_steps(sigmas, dtype) for dtype in (torch.float32, torch.bfloat16)] == [active, active]


@pytest.mark.parametrize("active", [0, 31, -1])
def test_more_steps_than_there_are_or_none_are_refused(active: int) -> None:
    with pytest.raises(ParameterError, match=f"active = {active}"):
        threshold_for_steps(flux_sigmas(30, 4096), active)


def test_each_rule_means_what_its_function_says() -> None:
    here = {"shift": 1.0, "tokens": 1024}
    assert resolve_threshold(0.8, **here) == 0.8
    assert resolve_threshold({"sigma": 0.97, "tokens": 4096}, **here) == transfer_threshold(0.97, to_tokens=1024)
    by_shift = transfer_threshold(0.97, from_shift=3.0, to_shift=1.0)
    assert resolve_threshold({"sigma": 0.97, "shift": 3.0}, **here) == by_shift
    assert resolve_threshold({"fraction": 0.1}, **here) == pytest.approx(0.9)


@pytest.mark.parametrize("rule", [{}, {"sigma": 0.9}, {"sigma": 0.9, "tokens": 64, "shift": 3.0}])
def test_a_rule_of_another_form_is_refused(rule: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match="fraction"):
        resolve_threshold(rule, shift=3.0, tokens=4096)


@pytest.mark.parametrize("tokens", [256, 1024, 2304, 4096])
def test_the_shift_read_from_a_scheduler_is_the_one_it_samples_with(tokens: int) -> None:
    """sigma = s u / (1 + (s - 1) u) at the known u of the second step gives s back."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    dynamic = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    u, sigma = 1 - 1 / 30, float(flux_sigmas(30, tokens)[1])
    used = sigma * (1 - u) / (u * (1 - sigma))
    assert sampler_shift(dynamic, tokens) == pytest.approx(used, rel=1e-4)
    assert sampler_shift(FlowMatchEulerDiscreteScheduler(shift=3.0), tokens) == 3.0
