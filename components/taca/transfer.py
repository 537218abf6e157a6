"""Convert a threshold chosen for one model, resolution and sampler to another.

The paper's 0.97 was chosen at 4096 image tokens and a shift of 3.16 (FLUX) or 3 (SD3.5), where it means 3 of 30 steps.
The same number at another resolution or shift means something else: with shift 1 it leaves one step of 30.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.errors import ParameterError
from components.taca.sampler import shift_sigma

if TYPE_CHECKING:
    from torch import Tensor


def transfer_threshold(
    threshold: float, *, from_shift: float = 1.0, to_shift: float = 1.0, from_tokens: int = 4096, to_tokens: int = 4096
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
    return shift_sigma(threshold, to_shift / from_shift * math.sqrt(to_tokens / from_tokens))


def threshold_for_fraction(fraction: float, shift: float) -> float:
    """Return the threshold above which the first `fraction` of a sampler's steps lie. The paper's is about 0.1."""
    if not 0 <= fraction <= 1:
        raise ParameterError(f"fraction = {fraction}: must lie in [0, 1]")
    if not shift > 0:
        raise ParameterError(f"shift = {shift}: must be above 0")
    return shift_sigma(1 - fraction, shift)


def threshold_for_steps(sigmas: "Sequence[float] | Tensor", active: int) -> float:
    """Return the threshold half-way between the last of a sampler's first `active` steps and the next: safe from rounding.

    sigmas: the noise level of each step, descending, with or without the terminal 0.
    """
    levels = [float(value) for value in sigmas if value > 0]
    if not 0 <= active <= len(levels):
        raise ParameterError(f"active = {active}: the sampler has {len(levels)} steps")
    if active == 0:
        raise ParameterError("active = 0: no threshold in [0, 1] switches every step off; use gamma 1")
    after = levels[active] if active < len(levels) else 0.0
    return (levels[active - 1] + after) / 2


def resolve_threshold(rule: float | Mapping[str, Any], *, shift: float, tokens: int) -> float:
    """Return the sigma of a threshold rule for a model with `shift` and `tokens` image tokens.

    rule: a sigma, returned as it is; {"sigma", "tokens"}: chosen at that many image tokens; {"sigma", "shift"}: chosen
    for a sampler of that shift; {"fraction"}: the first such fraction of the steps. Raises `ParameterError`.
    """
    allowed = "give a sigma in [0, 1], or sigma and tokens, or sigma and shift, or fraction"
    numbers = rule.values() if isinstance(rule, Mapping) else [rule]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise ParameterError(f"threshold = {rule}: {allowed}")
    if not isinstance(rule, Mapping):
        return transfer_threshold(rule)
    match sorted(rule):
        case ["sigma", "tokens"]:
            return transfer_threshold(rule["sigma"], from_tokens=rule["tokens"], to_tokens=tokens)
        case ["shift", "sigma"]:
            return transfer_threshold(rule["sigma"], from_shift=rule["shift"], to_shift=shift)
        case ["fraction"]:
            return threshold_for_fraction(rule["fraction"], shift)
    raise ParameterError(f"threshold = {dict(rule)}: {allowed}")
