"""The GA-DMS study: does masking by a score help when captions are wrong, and which score finds the wrong words?

*Arms*: methods that begin from one common start, a published encoder or one per seed that was trained contrastively on true
captions of other people, and are evaluated with true captions of unseen people.
*Scores*: every token score on trained encoders, compared with the words that noise made wrong.

Noise changes only the captions; pictures, people and the plan of each sentence are the same at every level. A seed is that of the
noise, the start, the order of the data and the masks, so that arms of one seed differ only in their method.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from components.evaluation.intervals import bootstrap_crossed
from components.gadms.config import ScoringConfig
from components.settings import Fraction, Positive
from pipelines.graph import PEOPLE
from pipelines.params import Parameters
from pipelines.schema.section import Section
from pipelines.studies.cells import Cell, Result, Study
from pipelines.studies.contrasts import interval
from pipelines.studies.plans import Distinct, Seeds, StudyPlan
from pipelines.studies.retrieval import READS, checked_method, means, person_hits, training_names
from pipelines.studies.starts import EncoderStart, PublishedModel, Schedule, require_encoder

METRICS = ("R@1", "R@5", "R@10", "mAP", "mINP")


class Scores(Section):
    """Token scores by name, the arms whose encoders compute them, and the number of captions."""

    scores: Annotated[dict[str, ScoringConfig], Field(min_length=1)]
    encoders: Annotated[list[str], *Distinct]
    captions: Positive
    unseen_noise: Annotated[Fraction, Field(gt=0)]


class GadmsPlan(StudyPlan):
    """`studies/gadms.yaml`."""

    noise: Annotated[list[Fraction], *Distinct]
    seeds: Seeds
    people: Positive
    start: EncoderStart
    training: Schedule
    method: dict[str, Any] = Field(default_factory=dict)
    """Changes to gadms_finetune.method in every arm, before its own."""
    arms: dict[Annotated[str, Field(pattern=r"^\w+$")], dict[str, Any]]
    baselines: Annotated[list[str], *Distinct]
    scores: Scores

    @model_validator(mode="after")
    def _names_of_arms(self) -> Self:
        if unknown := [arm for arm in self.baselines if arm not in self.arms]:
            raise ValueError(f"baselines: {unknown[0]} is not an arm: {', '.join(self.arms)}")
        if nameless := [arm for arm, changes in self.arms.items() if not isinstance(changes.get("name"), str)]:
            raise ValueError(f"arms.{nameless[0]}: has no method name")
        if unknown := [arm for arm in self.scores.encoders if arm not in self.arms]:
            raise ValueError(f"scores.encoders: {unknown[0]} is not an arm: {', '.join(self.arms)}")
        return self


def cells(plan: GadmsPlan, params: Parameters) -> list[Cell]:
    """Return every cell: a start per seed; for each noise level the arms that resume from it, and scores on their encoders."""
    found, skip, inputs = [], 0, PEOPLE
    if isinstance(plan.start, PublishedModel):
        inputs = {**PEOPLE, "start": plan.start.pretrained}
    else:
        skip = plan.start.people
        for seed in plan.seeds:
            settings = {"seed": seed, "skip": 0, **plan.start.model_dump()}
            found.append(Cell(start_key(seed), "start", settings, READS, PEOPLE))
    for noise, seed in product(plan.noise, plan.seeds):
        data = {"noise": noise, "seed": seed, "skip": skip, "people": plan.people}
        needs = (start_key(seed),) if skip else ()
        for arm, own in plan.arms.items():
            changes = {**plan.method, **own}
            method = checked_method(changes, params, f"studies/gadms.yaml: arms.{arm}")
            if noise == 0 and method.scoring.name == "truth":
                continue  # there are no wrong words
            settings = {**data, **plan.training.model_dump(), **changes}
            found.append(Cell(key(f"arms/{arm}", noise, seed), "train", settings, READS, inputs, needs))
        for arm in plan.scores.encoders:
            settings = {**data, **plan.scores.model_dump(mode="json", exclude={"encoders"})}
            trained = (key(f"arms/{arm}", noise, seed),)
            found.append(Cell(key(f"scores/{arm}", noise, seed), "score", settings, ("pictures",), PEOPLE, trained))
    return found


def summarise(plan: GadmsPlan, params: Parameters, results: Mapping[str, Result]) -> dict[str, Any]:
    """Return, by noise level, each arm's R@1 with paired differences to the baselines, and the AUC of each score."""
    bootstrap = {"resamples": params.gadms_evaluate.resamples, "seed": params.seed}
    summary: dict[str, Any] = {"arms": {}, "scores": {}}
    for noise in plan.noise:
        name = f"noise {noise:g}"
        rows = {arm: _arm(plan, results, arm, noise, bootstrap) for arm in plan.arms}
        summary["arms"][name] = {arm: row for arm, row in rows.items() if row}
        aucs = {arm: _aucs(plan, results, arm, noise) for arm in plan.scores.encoders}
        summary["scores"][name] = {arm: row for arm, row in aucs.items() if row}
    return summary


def _arm(
    plan: GadmsPlan, results: Mapping[str, Result], arm: str, noise: float, bootstrap: Mapping[str, int]
) -> dict[str, Any] | None:
    """Return the summary of an arm over its finished seeds; None without any.

    "interval" is that of R@1 with seeds and people resampled, "by_seed" its value for each of "seeds"; the other metrics are means
    over seeds. "minus" holds the paired difference to each baseline over the seeds that both have.
    """
    own = _of_seeds(plan, results, f"arms/{arm}", noise)
    if not own:
        return None
    hits = np.stack([person_hits(result) for result in own.values()])  # (S, people)
    row: dict[str, Any] = {
        "method": plan.arms[arm],
        "seeds": list(own),
        "queries": next(iter(own.values()))["queries"],
        "interval": bootstrap_crossed(hits, **bootstrap).as_dict(),
        "by_seed": hits.mean(axis=1).tolist(),
        **means(own.values(), METRICS),
        **means(own.values(), training_names(own.values())),
        "minus": {},
    }
    for baseline in plan.baselines:
        other = _of_seeds(plan, results, f"arms/{baseline}", noise)
        both = {seed: person_hits(own[seed]) - person_hits(other[seed]) for seed in own if seed in other}
        if both and baseline != arm:
            row["minus"][baseline] = interval(both, bootstrap)
    return row


def _aucs(plan: GadmsPlan, results: Mapping[str, Result], arm: str, noise: float) -> dict[str, Any] | None:
    """Return the AUC of each score on one arm's encoders, by kind ("seen", "seen_fact", "seen_colour", and so for "unseen")."""
    done = _of_seeds(plan, results, f"scores/{arm}", noise)
    if not done:
        return None
    table: dict[str, dict[str, Any]] = {}
    for name in next(iter(done.values())):
        kind, _, score = name.partition("/")
        if score:
            values = [result[name] for result in done.values()]
            table.setdefault(kind, {})[score] = {"mean": float(np.mean(values)), "by_seed": values}
    return {"seeds": list(done), **table}


def _of_seeds(plan: GadmsPlan, results: Mapping[str, Result], line: str, noise: float) -> dict[int, Result]:
    found = {seed: results.get(key(line, noise, seed)) for seed in plan.seeds}
    return {seed: result for seed, result in found.items() if result is not None}


def key(line: str, noise: float, seed: int) -> str:
    """Return the key of a line's cell (an arm, or scores on an arm's encoder) at one noise level and seed."""
    return f"{line}/noise-{noise:g}/seed-{seed}"


def start_key(seed: int) -> str:
    """Return the key of the common start of a seed."""
    return f"start/seed-{seed}"


def require(plan: GadmsPlan, params: Parameters, root: Path) -> None:
    """Require the start. Raises ParameterError or DataError."""
    require_encoder(plan.start, params, root, "start")


STUDY = Study(
    plan=GadmsPlan, cells=cells, summarise=summarise, code="pipelines.studies.gadms_cells", threads=1, require=require
)
