"""The report's section on the attention mass on text: a curve over sampler steps per layer, with and without TACA."""

from collections.abc import Mapping, Sequence
from typing import Any

ARMS = ("base", "taca")
SETTING = ("prompts", "steps", "active_steps", "text_tokens", "image_tokens", "uniform_share")


def attention_section(metrics: Mapping[str, Any], table: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the section. metrics: of `taca_attention`; table: its rows of arm, prompt_id, step, sigma, layer, active and mass.

    Each layer has, in the order of the forward pass, its `mass` in percent by arm and step (mean over prompts), whether TACA is
    `active` in it at each step, and the `change` over those steps: {} where there are none.
    """
    sums: dict[tuple[str, str, int], float] = {}
    sigma: dict[int, float] = {}
    active: dict[str, set[int]] = {}
    for arm, layer, step, level, on, mass in zip(
        *(table[name] for name in ("arm", "layer", "step", "sigma", "active", "mass")), strict=True
    ):
        sums[arm, layer, step] = sums.get((arm, layer, step), 0.0) + mass
        sigma[step] = level
        active.setdefault(layer, set()).update({step} if on else ())
    prompts = metrics["prompts"]
    return {
        **{name: metrics[name] for name in SETTING},
        "change": {name: metrics[name] for name in (*ARMS, "difference") if name in metrics},
        "sigma": [sigma[step] for step in sorted(sigma)],
        "layers": [
            {
                "name": layer,
                "mass": {arm: [100 * sums[arm, layer, step] / prompts for step in sorted(sigma)] for arm in ARMS},
                "active": [step in steps for step in sorted(sigma)],
                "change": metrics["layer"].get(layer.replace(" ", "_"), {}),
            }
            for layer, steps in active.items()
        ],
    }
