"""Convert a threshold chosen for one model, resolution and sampler to another.

The paper's 0.97 was chosen at 4096 image tokens and a shift of 3.16 (FLUX) or 3 (SD3.5), where it means 3 of 30 steps.
The same number at another resolution or shift means something else: with shift 1 it leaves one step of 30.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from components.errors import ParameterError
from components.taca.sampler import LARGEST_SIGMA, shift_sigma

if TYPE_CHECKING:
    from torch import Tensor

Levels = Callable[[int | None, float | None], "Sequence[float] | Tensor"]
"""(steps, shift) -> the noise level of each step of the model's sampler, descending. steps: None for those of the run. shift: None,
or that of an Euler sampler, called in the same way, to take in its place."""


def transfer_threshold(
    threshold: float,
    *,
    from_shift: float = 1.0,
    to_shift: float = 1.0,
    from_tokens: float = 4096,
    to_tokens: float = 4096,
) -> float:
    """Return the threshold for another model that is equivalent to `threshold` on the one it was chosen for.

    Two rules of the same form; use one. By shift: the same fraction of a sampler's steps is active when the schedule's shift goes
    from `from_shift` to `to_shift`. By resolution: the image is equally hidden at `to_tokens` image tokens as at `from_tokens`
    (SD3's resolution shift, arXiv 2403.03206 Eq. 23, factor sqrt(to / from)). Both together multiply the factors, which counts
    twice for a model whose shift already follows its resolution, as FLUX's does.
    """
    if not 0 <= threshold <= 1:
        hint = f"; for timestep {threshold:g} of 0..1000 give {threshold / 1000:g}" if threshold > 1 else ""
        raise ParameterError(f"threshold = {threshold}: must be a sigma in [0, 1]{hint}")
    for name, value in (("from_shift", from_shift), ("to_shift", to_shift)):
        if not value > 0:
            raise ParameterError(f"{name} = {value}: must be above 0")
    for name, tokens in (("from_tokens", from_tokens), ("to_tokens", to_tokens)):
        if tokens < 1:
            raise ParameterError(f"{name} = {tokens}: must be at least 1 image token")
    return shift_sigma(float(threshold), to_shift / from_shift * math.sqrt(to_tokens / from_tokens))


def threshold_for_steps(sigmas: "Sequence[float] | Tensor", active: int) -> float:
    """Return the threshold half-way between the last of a sampler's first `active` steps and the next: safe from rounding.

    sigmas: the noise level of each step, descending, with or without the terminal 0.
    """
    levels = [value for value in _falling(sigmas) if value > 0]
    if not 0 <= active <= len(levels):
        raise ParameterError(f"active = {active}: the sampler has {len(levels)} steps")
    if active == 0:
        raise ParameterError("active = 0: no threshold in [0, 1] switches every step off; use gamma 1")
    after = levels[active] if active < len(levels) else 0.0
    return min(1.0, (levels[active - 1] + after) / 2)


def _falling(sigmas: "Sequence[float] | Tensor") -> list[float]:
    """Return noise levels as numbers. Raises `ParameterError` where they do not fall, so that a threshold cannot divide them."""
    levels = [float(value) for value in sigmas]
    if any(after > before for before, after in itertools.pairwise(levels)) or max(levels, default=0) > LARGEST_SIGMA:
        raise ParameterError(
            "threshold: the sampler's noise levels do not fall from 1 to 0; give the threshold as a sigma"
        )
    return levels


def threshold_of_another_sampler(
    sigma: float, levels: "Sequence[float] | Tensor", other_levels: "Sequence[float] | Tensor"
) -> float:
    """Return the noise level that a sampler reaches where, as far through its steps, another one reaches `sigma`.

    levels, other_levels: of each step of the two, descending, as many in both. Between steps it is interpolated in log-odds, in
    which a shift adds a constant: for two samplers that differ in their shift alone this is `transfer_threshold` by shift.
    """
    import numpy as np

    here, there = (np.array(_falling(each))[::-1] for each in (levels, other_levels))
    inside = (here > 0) & (here < 1) & (there > 0) & (there < 1)
    if not 0 < sigma < 1 or not inside.any():
        return sigma
    here, there = here[inside], there[inside]
    offset = np.log(here / (1 - here)) - np.log(there / (1 - there))
    moved = math.log(sigma / (1 - sigma)) + float(np.interp(sigma, there, offset))
    return 1 / (1 + math.exp(-moved))


def resolve_threshold(rule: float | Mapping[str, Any], *, tokens: int, levels: Levels) -> float:
    """Return the sigma of a threshold rule for a model with `tokens` image tokens and a sampler with `levels`.

    rule: a sigma, returned as it is; {"sigma", "tokens"}: chosen at that many image tokens; {"sigma", "shift"}: chosen
    for a sampler of that shift, the same part of the steps; {"fraction"}: the first such fraction of the steps, at least one,
    with "steps" for a sampler of that many. `levels` is called for the last two only. Raises `ParameterError`.
    """
    allowed = "give a sigma in [0, 1], or sigma and tokens, or sigma and shift, or fraction, or fraction and steps"
    values = dict(rule) if isinstance(rule, Mapping) else {"": rule}
    if any(isinstance(number, bool) or not isinstance(number, Real) for number in values.values()):
        raise ParameterError(f"threshold = {rule}: {allowed}")
    match sorted(values):
        case [""]:
            return transfer_threshold(float(values[""]))
        case ["sigma", "tokens"]:
            return transfer_threshold(float(values["sigma"]), from_tokens=values["tokens"], to_tokens=tokens)
        case ["shift", "sigma"]:
            sigma, shift = float(values["sigma"]), float(values["shift"])
            transfer_threshold(sigma, from_shift=shift)  # refuses what is out of range
            return threshold_of_another_sampler(sigma, levels(None, None), levels(None, shift))
        case ["fraction"] | ["fraction", "steps"]:
            fraction, steps = values["fraction"], values.get("steps")
            if not 0 < fraction <= 1:
                raise ParameterError(f"fraction = {fraction}: must lie in (0, 1]; for no step use gamma 1")
            if steps is not None and (steps < 1 or steps != int(steps)):
                raise ParameterError(f"steps = {steps}: must be a number of sampler steps, at least 1")
            found = levels(None if steps is None else int(steps), None)
            return threshold_for_steps(found, max(1, round(fraction * len(found))))
    raise ParameterError(f"threshold = {rule}: {allowed}")
