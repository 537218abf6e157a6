"""The TACA study: does it help, how much and when, on the small base model, with and without guidance.

Three parts, each over several seeds and on the same prompts and noise as the base model, so that differences are paired. *Arms*:
base, LoRA at gamma 1, TACA without training, both. *Map*: gamma by threshold, without training. *Variants*: alternatives to TACA
(an additive bias, the opposite block of the attention) and other forms of its schedule, without training.

A seed is that of the LoRA's initialisation, data order and noise, and of the pictures' initial noise. The base model is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from components.evaluation.intervals import bootstrap_crossed
from components.settings import Count, Fraction, Positive, to_json
from components.taca.config import TacaConfig
from pipelines.graph import ADAPTERS, BASE, PEOPLE, TACA_ARMS
from pipelines.params import Parameters
from pipelines.schema.reading import checked
from pipelines.schema.section import Section
from pipelines.studies.cells import Cell, Result, Study
from pipelines.studies.plans import Distinct

REFERENCE, TEMPERATURE = "base", "taca"
TRAINED = {"lora": "lora", "taca_lora": "taca"}
"""Arm -> its adapter."""
SCHEDULED = ("taca", "taca_lora")
"""Arms that generate with the temperature schedule."""
Label = TypeVar("Label")

Seeds = Annotated[list[Count], *Distinct]
Guidances = Annotated[list[Annotated[float, Field(ge=1)]], *Distinct]
Gammas = Annotated[list[Annotated[float, Field(gt=0)]], *Distinct]
Thresholds = Annotated[list[Fraction], *Distinct]


class Arms(Section):
    """The four arms; everything is compared to the base."""

    seeds: Seeds
    prompts: Positive


class Map(Section):
    """Gamma by threshold. Gamma 1 is the base and need not be listed."""

    gammas: Gammas
    thresholds: Thresholds
    seeds: Seeds
    prompts: Positive


class Variants(Section):
    """Schedules by name, each as changes to the section `taca` of params.yaml."""

    schedules: dict[str, dict[str, Any]]
    seeds: Seeds
    prompts: Positive


class TacaPlan(Section):
    """`studies/taca.yaml`."""

    guidance: Guidances
    arms: Arms
    map: Map
    variants: Variants

    @model_validator(mode="after")
    def _compared_to_the_base(self) -> Self:
        for name, part in (("map", self.map), ("variants", self.variants)):
            if not set(part.seeds) <= set(self.arms.seeds) or part.prompts > self.arms.prompts:
                raise ValueError(f"{name}: seeds and prompts must be among those of arms, for comparison to its base")
        return self


def cells(plan: TacaPlan, params: Parameters) -> list[Cell]:
    """Return every cell of the study: adapters, then arms, map and variants."""
    default = params.taca
    found = [_train(arm, seed) for seed in plan.arms.seeds for arm in ADAPTERS]
    for seed, guidance, arm in product(plan.arms.seeds, plan.guidance, TACA_ARMS):
        needs = (train_key(TRAINED[arm], seed),) if arm in TRAINED else ()
        schedule = default if arm in SCHEDULED else None
        found.append(_draw(f"arms/{arm}", plan.arms.prompts, guidance, seed, schedule, needs))
    for part, schedules in (
        (plan.map, {map_line(*point): schedule for point, schedule in _map_schedules(plan, default).items()}),
        (plan.variants, {f"variants/{name}": schedule for name, schedule in _variant_schedules(plan, default).items()}),
    ):
        for seed, guidance, line in product(part.seeds, plan.guidance, schedules):
            found.append(_draw(line, part.prompts, guidance, seed, schedules[line]))
    return found


def summarise(plan: TacaPlan, params: Parameters, results: Mapping[str, Result]) -> dict[str, Any]:
    """Means, paired differences to the base, intervals over seeds and prompts, by guidance; what is not done yet is left out."""
    summary: dict[str, Any] = {"default": to_json(params.taca), "arms": {}, "map": {}, "variants": {}}
    for guidance in plan.guidance:
        compare = _Comparison(results, guidance, {"resamples": params.taca_evaluate.resamples, "seed": params.seed})
        name = f"guidance {guidance:g}"
        summary["arms"][name] = compare.rows(plan.arms, {arm: f"arms/{arm}" for arm in TACA_ARMS})
        points = {point: map_line(*point) for point in _map_schedules(plan, params.taca)}
        summary["map"][name] = [
            {"gamma": gamma, "threshold": threshold, **row}
            for (gamma, threshold), row in compare.rows(plan.map, points).items()
        ]
        # The default schedule itself, on the variants' seeds and prompts: their reference.
        lines = {TEMPERATURE: f"arms/{TEMPERATURE}", **{each: f"variants/{each}" for each in plan.variants.schedules}}
        summary["variants"][name] = compare.rows(plan.variants, lines)
    return summary


@dataclass(frozen=True)
class _Comparison:
    """Paired comparison to the base at one guidance scale, by prompt and seed."""

    results: Mapping[str, Result]
    guidance: float
    bootstrap: Mapping[str, int]

    def rows(self, part: Arms | Map | Variants, lines: Mapping[Label, str]) -> dict[Label, dict[str, Any]]:
        """Return the `row` of each line by label, for those that have one."""
        rows = {label: self.row(part, line) for label, line in lines.items()}
        return {label: row for label, row in rows.items() if row}

    def row(self, part: Arms | Map | Variants, line: str) -> dict[str, Any] | None:
        """Return the summary of a line over the seeds that it and the base have, on the first `part.prompts` prompts; or None.

        "sigma" is the threshold of the schedule for this model (None for none), "active_steps" its number of sampler steps.
        "alignment" and "difference" (to the base) are intervals in percent and percentage points, "by_seed" and
        "difference_by_seed" their values for each of "seeds".
        """
        pairs = {seed: (self._result(line, seed), self._result(f"arms/{REFERENCE}", seed)) for seed in part.seeds}
        done = {seed: (own, base) for seed, (own, base) in pairs.items() if own is not None and base is not None}
        if not done:
            return None
        first, _ = next(iter(done.values()))
        prompts = first["prompt_ids"][: part.prompts]
        own = np.stack([_shown(own, prompts) for own, _ in done.values()])  # (S, P)
        difference = own - np.stack([_shown(base, prompts) for _, base in done.values()])
        return {
            "seeds": list(done),
            "prompts": len(prompts),
            "steps": first["steps"],
            "active_steps": first["active_steps"],
            "sigma": first["sigma"],
            "alignment": bootstrap_crossed(own, **self.bootstrap).as_dict(),
            "by_seed": np.nanmean(own, axis=1).tolist(),
            "difference": bootstrap_crossed(difference, **self.bootstrap).as_dict(),
            "difference_by_seed": np.nanmean(difference, axis=1).tolist(),
        }

    def _result(self, line: str, seed: int) -> Result | None:
        return self.results.get(draw_key(line, self.guidance, seed))


def _shown(result: Result, prompts: Sequence[int]) -> NDArray[np.float64]:
    """Return the percentage of each prompt's attributes that its picture shows, (P,), NaN for a prompt without attributes."""
    of = dict(zip(result["prompt_ids"], result["shown"], strict=True))
    return np.array([np.nan if of[prompt] is None else of[prompt] for prompt in prompts], dtype=np.float64)


def _train(arm: str, seed: int) -> Cell:
    inputs = {**BASE, "cache": "data/taca_cache"}
    return Cell(train_key(arm, seed), "train", {"arm": arm, "seed": seed}, ("taca", "taca_train"), inputs)


def _draw(
    line: str, prompts: int, guidance: float, seed: int, schedule: TacaConfig | None, needs: tuple[str, ...] = ()
) -> Cell:
    settings = {"seed": seed, "guidance": guidance, "prompts": prompts, **(to_json(schedule) if schedule else {})}
    inputs = {**PEOPLE, **BASE, "probe": "models/probe"}
    return Cell(draw_key(line, guidance, seed), "draw", settings, ("pictures", "taca_generate"), inputs, needs)


def _map_schedules(plan: TacaPlan, default: TacaConfig) -> dict[tuple[float, float], TacaConfig]:
    return {
        (gamma, threshold): replace(default, gamma=gamma, threshold=threshold)
        for gamma, threshold in product(plan.map.gammas, plan.map.thresholds)
    }


def _variant_schedules(plan: TacaPlan, default: TacaConfig) -> dict[str, TacaConfig]:
    every = to_json(default)
    return {
        name: checked({**every, **changes}, TacaConfig, f"studies/taca.yaml: variants.schedules.{name}")
        for name, changes in plan.variants.schedules.items()
    }


def train_key(arm: str, seed: int) -> str:
    return f"train/{arm}/seed-{seed}"


def map_line(gamma: float, threshold: float) -> str:
    return f"map/gamma-{gamma:g}/threshold-{threshold:g}"


def draw_key(line: str, guidance: float, seed: int) -> str:
    """Return the key of a line's cell (an arm, a point of the map, a variant) at one guidance scale and seed."""
    return f"{line}/guidance-{guidance:g}/seed-{seed}"


STUDY = Study(plan=TacaPlan, cells=cells, summarise=summarise, code="pipelines.studies.taca_cells")
