"""Thresholds carried from one model to another, against the paper's numbers and diffusers' own samplers."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from test_schedule import fixed_shift_sigmas, flux_sigmas

from components.errors import ParameterError
from components.taca.config import TacaConfig
from components.taca.schedule import TemperatureSchedule
from components.taca.transfer import resolve_threshold, threshold_for_steps, transfer_threshold


@pytest.mark.parametrize(("tokens", "expected"), [(4096, 0.97), (1024, 0.942), (256, 0.890), (64, 0.802)])
def test_a_threshold_follows_the_resolution(tokens: int, expected: float) -> None:
    assert transfer_threshold(0.97, to_tokens=tokens) == pytest.approx(expected, abs=1e-3)


def test_a_threshold_transferred_by_shift_keeps_the_active_fraction_of_a_sampler() -> None:
    for target in (1.0, 2.0, 6.0):
        threshold = transfer_threshold(0.97, from_shift=3.0, to_shift=target)
        before = TemperatureSchedule(threshold=0.97).active_steps(fixed_shift_sigmas(200, 3.0))
        after = TemperatureSchedule(threshold=threshold).active_steps(fixed_shift_sigmas(200, target))
        assert abs(after - before) <= 1


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


def levels_of(shift: float, steps: int = 30):
    """`levels` of a FLUX-like sampler of that shift: (1 - i / n) shifted."""

    def levels(number: int | None, other_shift: float | None) -> list[float]:
        count, used = number or steps, other_shift or shift
        return [used * u / (1 + (used - 1) * u) for u in (1 - i / count for i in range(count))]

    return levels


def test_each_rule_means_what_its_function_says() -> None:
    here = {"levels": levels_of(1.0), "tokens": 1024}
    assert resolve_threshold(0.8, **here) == 0.8
    assert resolve_threshold({"sigma": 0.97, "tokens": 4096}, **here) == transfer_threshold(0.97, to_tokens=1024)
    by_shift = transfer_threshold(0.97, from_shift=3.0, to_shift=1.0)
    assert resolve_threshold({"sigma": 0.97, "shift": 3.0}, **here) == pytest.approx(by_shift, abs=1e-9)
    assert resolve_threshold({"fraction": 0.1}, **here) == pytest.approx(
        1 - 2.5 / 30
    )  # between the third step and the next
    assert resolve_threshold({"fraction": 0.1, "steps": 50}, **here) == pytest.approx(1 - 4.5 / 50)
    assert resolve_threshold({"fraction": 0.001}, **here) == pytest.approx(1 - 0.5 / 30)  # at least one step
    assert resolve_threshold({"fraction": 1}, **here) < 1 / 30


def test_a_sigma_or_a_resolution_asks_nothing_of_the_sampler() -> None:
    def refuse(steps: int | None, shift: float | None) -> list[float]:
        raise AssertionError

    assert resolve_threshold(0.97, tokens=1024, levels=refuse) == 0.97
    assert resolve_threshold({"sigma": 0.97, "tokens": 1024}, tokens=1024, levels=refuse) == pytest.approx(0.97)


def test_a_rule_by_shift_keeps_its_sigma_on_the_sampler_that_it_was_chosen_for() -> None:
    rule = {"sigma": 0.97, "shift": 3.0}
    for steps in (1, 4, 30):
        assert resolve_threshold(rule, tokens=1, levels=levels_of(3.0, steps)) == pytest.approx(0.97, abs=1e-9)


@pytest.mark.parametrize("make", [np.float32, np.float64, np.float16, torch.tensor])
def test_numbers_of_numpy_and_pytorch_are_numbers(make: Any) -> None:
    whole = np.int64 if make is not torch.tensor else torch.tensor
    schedule = TemperatureSchedule(gamma=make(1.25), threshold=make(0.5), layers=(whole(0), whole(2)))
    assert (schedule.gamma, schedule.threshold, schedule.layers) == (1.25, 0.5, (0, 2))
    assert json.loads(json.dumps(schedule.to_mapping()))["layers"] == [0, 2]
    config = TacaConfig(threshold={"sigma": make(0.5), "tokens": whole(64)}, padding=np.bool_(False))
    assert config == TacaConfig(threshold={"sigma": 0.5, "tokens": 64}, padding=False)
    assert TemperatureSchedule(layers=np.arange(3)).layers == (0, 1, 2)
    if make is not torch.tensor:
        assert transfer_threshold(make(0.5), from_shift=make(1), to_shift=make(3)) == 0.75
    with pytest.raises(ParameterError, match="gamma"):
        TemperatureSchedule(gamma=make(-1))


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"sigma": 0.9},
        {"sigma": 0.9, "tokens": 64, "shift": 3.0},
        {"fraction": 0.0},
        {"fraction": 1.5},
        {"fraction": 0.1, "steps": 2.5},
        {"sigma": 0.9, "shift": 0.0},
        {"sigma": 0.9, "steps": 30},
        {"fraction": True},
    ],
)
def test_a_rule_of_another_form_is_refused_wherever_it_is_read(rule: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        resolve_threshold(rule, levels=levels_of(3.0), tokens=4096)
    with pytest.raises(ParameterError, match="threshold"):
        TacaConfig(threshold=rule)


def test_levels_that_do_not_fall_are_refused_in_one_line() -> None:
    for rule in ({"fraction": 0.1}, {"sigma": 0.97, "shift": 3.0}):
        with pytest.raises(ParameterError, match="do not fall"):
            resolve_threshold(rule, tokens=1, levels=lambda steps, shift: [0.1, 0.5, 1.0])
