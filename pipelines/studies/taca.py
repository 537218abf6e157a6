"""The TACA study: does it help, how much and when, on the small base model, with and without guidance.

Parts, each over several seeds and on the same prompts and noise as the base model, so that differences are paired. *Arms*: base,
LoRA at gamma 1, TACA without training, both. *Map*: gamma by threshold, without training. *Carried*: the same at another size of
pictures, with the threshold as it is and as the rule by resolution carries it there. *Variants*: alternatives to TACA (an additive
bias, the opposite block of the attention) and other forms of its schedule, without training. Contrasts between any two lines of
these, named beforehand, are drawn again from fresh seeds.

A seed is that of the LoRA's initialisation, data order and noise, and of the pictures' initial noise. The base model is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from components.evaluation.intervals import bootstrap_crossed
from components.settings import Fraction, Positive, to_json
from components.taca.config import TacaConfig
from pipelines.graph import ADAPTERS, BASE, PEOPLE, TACA_ARMS
from pipelines.params import Parameters
from pipelines.schema.reading import checked
from pipelines.schema.section import Section
from pipelines.studies.cells import Cell, Phase, Result, Study
from pipelines.studies.contrasts import status_of_claim, summarise_contrasts
from pipelines.studies.plans import Contrast, Distinct, Seeds, StudyPlan, require_fresh, require_known
from pipelines.studies.starts import PublishedModel, require_reserved

REFERENCE, TEMPERATURE = "base", "taca"
CARRIED = ("base", "same", "rule")
CACHE = "cache"
TRAINED = {"lora": "lora", "taca_lora": "taca"}
"""Arm -> its adapter."""
SCHEDULED = ("taca", "taca_lora")
"""Arms that generate with the temperature schedule."""
Label = TypeVar("Label")

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


class Carried(Section):
    """The default gamma at pictures of another size: `base`, and TACA with `threshold`, a sigma that was chosen at the pictures of
    params.yaml, as it is (`same`) and as the rule by resolution carries it (`rule`)."""

    height: Positive
    width: Positive
    threshold: Fraction
    seeds: Seeds
    prompts: Positive


class TacaStart(Section):
    """Published models in place of those that `dvc repro` made."""

    generator: PublishedModel
    probe: PublishedModel


class TacaPlan(StudyPlan):
    """`studies/<name>.yaml` of the kind `taca`.

    words: of the prompts that are drawn, `trained` as in training, `noun-first` in an order that it never had.
    confirm: fresh seeds of the contrasts, whose lines are those of the cells, arms by their own names.
    """

    start: TacaStart | None = None
    words: Literal["trained", "noun-first"] = "trained"
    guidance: Guidances
    arms: Arms
    map: Map | None = None
    carried: Carried | None = None
    variants: Variants | None = None
    confirm: Seeds | None = None
    contrasts: list[Contrast] = Field(default_factory=list)

    @model_validator(mode="after")
    def _compared_to_the_base(self) -> Self:
        for name, part in (("map", self.map), ("variants", self.variants), ("carried", self.carried)):
            if part and (not set(part.seeds) <= set(self.arms.seeds) or part.prompts > self.arms.prompts):
                raise ValueError(f"{name}: seeds and prompts must be among those of arms, for comparison to its base")
        return self

    @model_validator(mode="after")
    def _confirmed_on_fresh_seeds(self) -> Self:
        if self.contrasts and not self.confirm:
            raise ValueError("confirm: missing: contrasts are confirmed on fresh seeds")
        require_fresh(self.arms.seeds, self.confirm or ())
        lines = [*TACA_ARMS, *(map_line(*point) for point in self.points())]
        lines += [f"variants/{name}" for name in self.schedules()]
        lines += [f"carried/{name}" for name in CARRIED if self.carried]
        require_known(self.contrasts, lines, [condition(guidance) for guidance in self.guidance])
        return self

    def points(self) -> list[tuple[float, float]]:
        """Return each gamma and threshold of the map; none without one."""
        return list(product(self.map.gammas, self.map.thresholds)) if self.map else []

    def schedules(self) -> Mapping[str, dict[str, Any]]:
        """Return the changes of each variant by its name; none without variants."""
        return self.variants.schedules if self.variants else {}


def cells(plan: TacaPlan, params: Parameters) -> list[Cell]:
    """Return every cell of the study: the cache, adapters, then arms, map, carried and variants, then contrasts on fresh seeds."""
    make = _Expansion(plan, params)
    found = make.cache()
    for seed in plan.arms.seeds:
        found += [make.train(arm, seed) for arm in ADAPTERS]
    for seed, guidance, arm in product(plan.arms.seeds, plan.guidance, TACA_ARMS):
        found.append(make.draw(arm, plan.arms.prompts, guidance, seed))
    parts = (
        (plan.map, [map_line(*point) for point in _map_schedules(plan, params.taca)]),
        (plan.carried, [f"carried/{name}" for name in CARRIED]),
        (plan.variants, [f"variants/{name}" for name in plan.schedules()]),
    )
    for part, lines in parts:
        if part:
            for seed, guidance, line in product(part.seeds, plan.guidance, lines):
                found.append(make.draw(line, part.prompts, guidance, seed))
    named = list(dict.fromkeys((line, at) for c in plan.contrasts for at in c.at for line in (c.arm, c.minus)))
    scales = {condition(guidance): guidance for guidance in plan.guidance}
    for seed in plan.confirm or ():
        trained = dict.fromkeys(TRAINED[line] for line, _ in named if line in TRAINED)
        found += [make.train(arm, seed, "confirm") for arm in trained]
        found += [make.draw(line, plan.arms.prompts, scales[at], seed, "confirm") for line, at in named]
    return found


class _Expansion:
    """Makes the cells of a plan; `schedules` are those of its lines, `same size` but for carried ones."""

    def __init__(self, plan: TacaPlan, params: Parameters) -> None:
        self.plan = plan
        default = params.taca
        self.schedules: dict[str, TacaConfig] = dict.fromkeys(SCHEDULED, default)
        self.schedules |= {map_line(*point): schedule for point, schedule in _map_schedules(plan, default).items()}
        self.schedules |= {f"variants/{name}": each for name, each in _variant_schedules(plan, default).items()}
        if plan.carried:
            chosen = replace(default, threshold=plan.carried.threshold)
            self.schedules |= {"carried/same": chosen, "carried/rule": chosen}
        if plan.start is None:
            self.base, self.probe = BASE, {"probe": "models/probe"}
        else:
            self.base = {"base_weights": plan.start.generator.pretrained}
            self.probe = {"probe": plan.start.probe.pretrained}

    def cache(self) -> list[Cell]:
        """Return the cell that encodes training pictures with a published base; `dvc repro` has done so with its own."""
        if self.plan.start is None:
            return []
        return [Cell(CACHE, "cache", {}, ("pictures", "taca_cache"), {**PEOPLE, **self.base})]

    def train(self, arm: str, seed: int, phase: Phase = "screen") -> Cell:
        inputs, needs = (
            ({**self.base, "cache": "data/taca_cache"}, ()) if self.plan.start is None else (self.base, (CACHE,))
        )
        settings = {"arm": arm, "seed": seed}
        return Cell(train_key(arm, seed), "train", settings, ("taca", "taca_train"), inputs, needs, phase)

    def draw(self, line: str, prompts: int, guidance: float, seed: int, phase: Phase = "screen") -> Cell:
        needs = (train_key(TRAINED[line], seed),) if line in TRAINED else ()
        settings: dict[str, Any] = {"seed": seed, "guidance": guidance, "prompts": prompts}
        settings |= {} if self.plan.words == "trained" else {"words": self.plan.words}
        if line in self.schedules:
            settings |= to_json(self.schedules[line])
        if line.startswith("carried/") and self.plan.carried:
            settings |= {"height": self.plan.carried.height, "width": self.plan.carried.width}
            settings |= {"carried": True} if line == "carried/rule" else {}
        inputs = {**PEOPLE, **self.base, **self.probe}
        reads = ("pictures", "taca_generate")
        return Cell(draw_key(line_of(line), guidance, seed), "draw", settings, reads, inputs, needs, phase)


def summarise(plan: TacaPlan, params: Parameters, results: Mapping[str, Result]) -> dict[str, Any]:
    """Means, paired differences to the base, intervals over seeds and prompts, by guidance; what is not done yet is left out.

    Arms are over the seeds that all of them have, those that screen and fresh ones; all others over those that screen.
    """
    summary: dict[str, Any] = {"default": to_json(params.taca), "arms": {}, "map": {}, "carried": {}, "variants": {}}
    for guidance in plan.guidance:
        compare = _Comparison(results, guidance, {"resamples": params.taca_evaluate.resamples, "seed": params.seed})
        name = f"guidance {guidance:g}"
        arms = plan.arms.model_copy(update={"seeds": _seeds_of_arms(plan, results, guidance)})
        summary["arms"][name] = compare.rows(arms, {arm: f"arms/{arm}" for arm in TACA_ARMS})
        if plan.map:
            points = {point: map_line(*point) for point in _map_schedules(plan, params.taca)}
            summary["map"][name] = [
                {"gamma": gamma, "threshold": threshold, **row}
                for (gamma, threshold), row in compare.rows(plan.map, points).items()
            ]
        if plan.variants:
            # The default schedule itself, on the variants' seeds and prompts: their reference.
            lines = {TEMPERATURE: f"arms/{TEMPERATURE}", **{each: f"variants/{each}" for each in plan.schedules()}}
            summary["variants"][name] = compare.rows(plan.variants, lines)
        if plan.carried:
            sized = replace(compare, reference="carried/base")
            summary["carried"][name] = sized.rows(plan.carried, {each: f"carried/{each}" for each in CARRIED})
    return {**summary, **_contrasts(plan, params, results)}


def _seeds_of_arms(plan: TacaPlan, results: Mapping[str, Result], guidance: float) -> list[int]:
    """Return the seeds, of both phases, that every arm has of which anything is measured."""
    seeds = [*plan.arms.seeds, *(plan.confirm or ())]
    done = {arm: {seed for seed in seeds if draw_key(f"arms/{arm}", guidance, seed) in results} for arm in TACA_ARMS}
    return [seed for seed in seeds if all(seed in own for own in done.values() if own)]


def _contrasts(plan: TacaPlan, params: Parameters, results: Mapping[str, Result]) -> dict[str, Any]:
    """Return the contrasts and the status of the claim; pairs of different numbers of prompts are compared on those of both."""

    def values(line: str, at: str, seed: int) -> NDArray[np.float64] | None:
        result = results.get(f"{line_of(line)}/{at}/seed-{seed}")
        if result is None:
            return None
        shown = _shown(result, result["prompt_ids"])
        return np.pad(shown, (0, plan.arms.prompts - len(shown)), constant_values=np.nan)

    bootstrap = {"resamples": params.taca_evaluate.resamples, "seed": params.seed}
    rows = summarise_contrasts(
        plan.contrasts, {"screen": plan.arms.seeds, "confirm": plan.confirm or []}, values, bootstrap
    )
    return {"unit": "percent of a prompt's attributes", "claim": status_of_claim(rows), "contrasts": rows}


@dataclass(frozen=True)
class _Comparison:
    """Paired comparison to the base (the line `reference`) at one guidance scale, by prompt and seed."""

    results: Mapping[str, Result]
    guidance: float
    bootstrap: Mapping[str, int]
    reference: str = f"arms/{REFERENCE}"

    def rows(self, part: Arms | Map | Carried | Variants, lines: Mapping[Label, str]) -> dict[Label, dict[str, Any]]:
        """Return the `row` of each line by label, for those that have one."""
        rows = {label: self.row(part, line) for label, line in lines.items()}
        return {label: row for label, row in rows.items() if row}

    def row(self, part: Arms | Map | Carried | Variants, line: str) -> dict[str, Any] | None:
        """Return the summary of a line over the seeds that it and the base have, on the first `part.prompts` prompts; or None.

        "sigma" is the threshold of the schedule for this model (None for none), "active_steps" its number of sampler steps.
        "alignment" and "difference" (to the base) are intervals in percent and percentage points, "by_seed" and
        "difference_by_seed" their values for each of "seeds".
        """
        pairs = {seed: (self._result(line, seed), self._result(self.reference, seed)) for seed in part.seeds}
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


def _map_schedules(plan: TacaPlan, default: TacaConfig) -> dict[tuple[float, float], TacaConfig]:
    return {
        (gamma, threshold): replace(default, gamma=gamma, threshold=threshold) for gamma, threshold in plan.points()
    }


def _variant_schedules(plan: TacaPlan, default: TacaConfig) -> dict[str, TacaConfig]:
    every = to_json(default)
    return {
        name: checked({**every, **changes}, TacaConfig, f"studies/taca.yaml: variants.schedules.{name}")
        for name, changes in plan.schedules().items()
    }


def line_of(name: str) -> str:
    """Return the line of cells that a contrast names: arms go by their own names."""
    return f"arms/{name}" if name in TACA_ARMS else name


def condition(guidance: float) -> str:
    """Return the part of a cell's key that names the guidance, which is the condition of contrasts."""
    return f"guidance-{guidance:g}"


def train_key(arm: str, seed: int) -> str:
    return f"train/{arm}/seed-{seed}"


def map_line(gamma: float, threshold: float) -> str:
    return f"map/gamma-{gamma:g}/threshold-{threshold:g}"


def draw_key(line: str, guidance: float, seed: int) -> str:
    """Return the key of a line's cell (an arm, a point of the map, a variant) at one guidance scale and seed."""
    return f"{line}/{condition(guidance)}/seed-{seed}"


def require(plan: TacaPlan, params: Parameters, root: Path) -> None:
    """Require the published models. Raises ParameterError or DataError."""
    if plan.start is None:
        return
    from components.evaluation.probe.model import folder_digest as probe_digest
    from components.taca.reference import folder_digest

    plan.start.generator.require(root, "start.generator", folder_digest)
    plan.start.probe.require(root, "start.probe", probe_digest)
    require_reserved(params, "start")


STUDY = Study(plan=TacaPlan, cells=cells, summarise=summarise, code="pipelines.studies.taca_cells", require=require)
