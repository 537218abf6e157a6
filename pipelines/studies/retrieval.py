"""Studies of person retrieval: arms that are the product of factors, under conditions of the captions.

An arm is one level of every factor: changes to gadms_finetune.method. All arms begin from one encoder, and are evaluated with true
captions of people that no training has seen. A seed is that of the noise, the order of the data and the masks, so arms of one seed
differ in their levels alone. Under `finetune` that training comes first, and one fine-tuning, the same for every arm, after it.

Cells are ordered by what they are worth: those of the contrasts first, in their order.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from components.gadms.methods import RetrievalConfig
from components.persons.drawn.confusion import Confusion
from components.settings import AboveZero, Count, Fraction, Positive
from pipelines.graph import PEOPLE
from pipelines.params import Parameters
from pipelines.schema.reading import checked
from pipelines.schema.section import Section
from pipelines.studies.cells import Cell, Phase, Result, Study
from pipelines.studies.contrasts import interval, status_of_claim, summarise_contrasts
from pipelines.studies.plans import Contrast, Distinct, Name, PhaseSeeds, StudyPlan, require_known
from pipelines.studies.starts import EncoderStart, PublishedModel, Schedule, TrainedStart, require_encoder

START = "start"
"""The start itself, without training: an arm of contrasts."""
READS = ("pictures", "retrieval", "gadms_finetune")
METRICS = ("R@1", "R@5", "R@10", "mAP")


class Condition(Section):
    """How training captions are wrong: facts at random, or alike in all captions of a person; and whether two are joined."""

    noise: Fraction = 0.0
    confusion: Confusion | None = None
    joined: bool = False

    @property
    def wrong(self) -> bool:
        """Whether any word is wrong."""
        return self.noise > 0 or self.confusion is not None


class Finetune(Schedule):
    """The fine-tuning that every arm has alike: on other people, with correct captions, by one method."""

    people: Positive
    method: dict[str, Any]


class Curve(Section):
    """Arms at several lengths of training, as factors of training.steps, each with a schedule of its own."""

    arms: Annotated[list[str], *Distinct]
    conditions: Annotated[list[str], *Distinct]
    budgets: Annotated[list[AboveZero], *Distinct]


class RetrievalPlan(StudyPlan):
    """`studies/<name>.yaml` of the kind `retrieval`."""

    seeds: PhaseSeeds
    start: EncoderStart
    skip: Count = 0
    people: Positive
    training: Schedule
    finetune: Finetune | None = None
    conditions: Annotated[dict[Name, Condition], Field(min_length=1)]
    factors: Annotated[dict[Name, dict[Name, dict[str, Any]]], Field(min_length=1)]
    contrasts: Annotated[list[Contrast], Field(min_length=1)]
    curve: Curve | None = None

    @model_validator(mode="after")
    def _contrasts_of_known_arms(self) -> Self:
        arms = self.arms()
        require_known(self.contrasts, [START, *arms], list(self.conditions))
        if self.curve:
            for key, known in (("arms", list(arms)), ("conditions", list(self.conditions))):
                if unknown := [name for name in getattr(self.curve, key) if name not in known]:
                    raise ValueError(f"curve.{key}: {unknown[0]} is not one of {', '.join(known)}")
        return self

    def arms(self) -> dict[str, dict[str, Any]]:
        """Return the changes of each arm by its name, `infonce/0.07/paper`. Raises ValueError for a key that two factors set."""
        found = {}
        for levels in product(*self.factors.values()):
            changes: dict[str, Any] = {}
            for factor, level in zip(self.factors, levels, strict=True):
                if twice := changes.keys() & self.factors[factor][level].keys():
                    raise ValueError(f"factors.{factor}.{level}: {min(twice)} is set by another factor too")
                changes |= self.factors[factor][level]
            found["/".join(levels)] = changes
        return found


def cells(plan: RetrievalPlan, params: Parameters) -> list[Cell]:
    """Return every cell: the start, the screen, the contrasts on fresh seeds, and the learning curve."""
    expansion = _Expansion(plan, params)
    return [*expansion.starts(), *expansion.arms(), *expansion.curve()]


class _Expansion:
    """The cells of a plan; arms are checked when it is made."""

    def __init__(self, plan: RetrievalPlan, params: Parameters) -> None:
        self.plan = plan
        self.changes = plan.arms()
        self.methods = {
            arm: checked_method(changes, params, f"factors: {arm}") for arm, changes in self.changes.items()
        }
        if plan.finetune:
            checked_method(plan.finetune.method, params, "finetune.method")
        self.inputs = {**PEOPLE, "start": plan.start.pretrained} if isinstance(plan.start, PublishedModel) else PEOPLE

    def starts(self) -> list[Cell]:
        plan = self.plan
        if isinstance(plan.start, PublishedModel):
            return [Cell(START, "evaluate", {}, ("pictures",), self.inputs)]
        settings = {"skip": 0, "noise": plan.start.noise, **plan.start.model_dump(exclude={"noise"})}
        return [
            Cell(start_key(plan, seed), "start", {"seed": seed, **settings}, READS, PEOPLE, phase=phase)
            for phase, seeds in plan.seeds.by_phase().items()
            for seed in seeds
        ]

    def arms(self) -> list[Cell]:
        named = list(
            dict.fromkeys(pair for c in self.plan.contrasts for at in c.at for pair in ((c.arm, at), (c.minus, at)))
        )
        named = [pair for pair in named if pair[0] != START]
        others = [pair for pair in product(self.methods, self.plan.conditions) if pair not in named]
        return [
            cell
            for phase, seeds in self.plan.seeds.by_phase().items()
            for arm, condition in (named if phase == "confirm" else [*named, *others])
            for seed in seeds
            for cell in self.trained(f"arms/{arm}/{condition}", arm, condition, seed, phase)
        ]

    def curve(self) -> Iterator[Cell]:
        curve = self.plan.curve
        if curve is None:
            return
        for budget, condition, arm in product(sorted(curve.budgets), curve.conditions, curve.arms):
            for seed in self.plan.seeds.screen:
                yield from self.trained(curve_line(budget, arm, condition), arm, condition, seed, "curve", budget)

    def trained(
        self, line: str, arm: str, condition: str, seed: int, phase: Phase, budget: float = 1.0
    ) -> Iterator[Cell]:
        """Yield the cells that train an arm, none where it masks wrong words and there are none."""
        plan, state = self.plan, self.plan.conditions[condition]
        if not state.wrong and self.methods[arm].scoring.name == "truth":
            return
        settings = {
            **state.model_dump(mode="json"),
            "seed": seed,
            "skip": plan.skip,
            "people": plan.people,
            **plan.training.model_dump(),
            "steps": max(1, round(budget * plan.training.steps)),
            "method": self.changes[arm],
        }
        needs = () if isinstance(plan.start, PublishedModel) else (start_key(plan, seed),)
        key = f"{line}/seed-{seed}"
        if plan.finetune is None:
            yield Cell(key, "train", settings, READS, self.inputs, needs, phase)
            return
        first = f"pretrain/{key}"
        yield Cell(first, "pretrain", settings, READS, self.inputs, needs, phase)
        after = {**Condition().model_dump(mode="json"), "seed": seed, "skip": plan.skip + plan.people}
        after |= plan.finetune.model_dump(mode="json")
        yield Cell(key, "finetune", after, READS, PEOPLE, (first,), phase)


def checked_method(changes: Mapping[str, Any], params: Parameters, where: str) -> RetrievalConfig:
    """Return gadms_finetune.method with `changes`. Raises ParameterError for invalid ones; `where` names them."""
    return checked({**asdict(params.gadms_finetune.method), **changes}, RetrievalConfig, where)


def summarise(plan: RetrievalPlan, params: Parameters, results: Mapping[str, Result]) -> dict[str, Any]:
    """Return the status of the claim, the contrasts, the R@1 of each arm by condition and phase, and the learning curve.

    R@1 is in percent, intervals are over seeds and people. What is not measured is left out, but for contrasts, which say so.
    """
    bootstrap = {"resamples": params.gadms_evaluate.resamples, "seed": params.seed}
    found = _Results(plan, results, bootstrap)
    rows = summarise_contrasts(plan.contrasts, plan.seeds.by_phase(), found.values, bootstrap)
    arms = {
        condition: {arm: row for arm in plan.arms() if (row := found.arm(arm, condition))}
        for condition in plan.conditions
    }
    start = found.start()
    return {
        "unit": "R@1 in percent",
        "claim": status_of_claim(rows),
        "contrasts": rows,
        "start": start,
        "arms": {condition: rows for condition, rows in arms.items() if rows},
        "curve": found.curve(),
    }


class _Results:
    def __init__(self, plan: RetrievalPlan, results: Mapping[str, Result], bootstrap: Mapping[str, int]) -> None:
        self.plan, self.results, self.bootstrap = plan, results, bootstrap

    def values(self, arm: str, condition: str, seed: int) -> NDArray[np.float64] | None:
        key = start_key(self.plan, seed) if arm == START else f"arms/{arm}/{condition}/seed-{seed}"
        result = self.results.get(key)
        return None if result is None else person_hits(result)

    def arm(self, arm: str, condition: str) -> dict[str, Any]:
        """Return the R@1 of each phase, with the other metrics and those of masks and scores as means over its seeds."""
        row: dict[str, Any] = {}
        for phase, seeds in self.plan.seeds.by_phase().items():
            own = {
                seed: result for seed in seeds if (result := self.results.get(f"arms/{arm}/{condition}/seed-{seed}"))
            }
            if own:
                row[phase] = {
                    **(interval({seed: person_hits(result) for seed, result in own.items()}, self.bootstrap) or {}),
                    **means(own.values(), METRICS),
                    **means(own.values(), training_names(own.values())),
                }
        return row

    def start(self) -> dict[str, Any] | None:
        seeds = [seed for of_phase in self.plan.seeds.by_phase().values() for seed in of_phase]
        if isinstance(self.plan.start, PublishedModel):
            seeds = seeds[:1]  # one model, one result
        found = {seed: value for seed in seeds if (value := self.values(START, "", seed)) is not None}
        return interval(found, self.bootstrap)

    def curve(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Return for each condition and arm the R@1 at each measured budget, and the steps of training."""
        curve = self.plan.curve
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for condition, arm in product(curve.conditions, curve.arms) if curve else ():
            points = []
            for budget in sorted(curve.budgets) if curve else ():
                keys = {seed: f"{curve_line(budget, arm, condition)}/seed-{seed}" for seed in self.plan.seeds.screen}
                own = {seed: person_hits(self.results[key]) for seed, key in keys.items() if key in self.results}
                if point := interval(own, self.bootstrap):
                    points.append({"budget": budget, "steps": round(budget * self.plan.training.steps), **point})
            if points:
                found.setdefault(condition, {})[arm] = points
        return found


def person_hits(result: Result) -> NDArray[np.float64]:
    """Return R@1 of each person's captions in percent, (people,), ordered by identity."""
    hits, people = np.array(result["hits"], dtype=np.float64), np.array(result["identity"])
    return np.array([hits[people == person].mean() for person in np.unique(people)])


def training_names(results: Iterable[Result]) -> list[str]:
    """Return the names of the metrics of scores and masks that any result has."""
    return sorted({name for result in results for name in result if name.startswith("training/")})


def means(results: Iterable[Result], names: Iterable[str]) -> dict[str, float]:
    """Return the mean of each named number over the results that have it, without the prefix `training/`."""
    every = list(results)
    values = {name: [result[name] for result in every if name in result] for name in names}
    return {name.removeprefix("training/"): float(np.mean(found)) for name, found in values.items() if found}


def start_key(plan: RetrievalPlan, seed: int) -> str:
    """Return the key of the start: one for all seeds if it is published."""
    return f"{START}/seed-{seed}" if isinstance(plan.start, TrainedStart) else START


def curve_line(budget: float, arm: str, condition: str) -> str:
    """Return the line of an arm in the learning curve."""
    return f"curve/budget-{budget:g}/{arm}/{condition}"


def require(plan: RetrievalPlan, params: Parameters, root: Path) -> None:
    """Require the start. Raises ParameterError or DataError."""
    require_encoder(plan.start, params, root, "start")


STUDY = Study(
    plan=RetrievalPlan,
    cells=cells,
    summarise=summarise,
    code="pipelines.studies.retrieval_cells",
    threads=1,
    require=require,
)
