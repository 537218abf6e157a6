"""The chain of both methods: generated pictures pre-train the encoder that is then fine-tuned on real people.

Arms are the pictures of pre-training: the base's, TACA's without and with its LoRA, `drawn` (real pictures of the same people, the
upper bound), or none: fine-tuning alone (`none`), and as many steps as the others have in all (`longer`). All corpora have the same
prompts, captions and number, pictures of the generator from the same noise. Conditions are numbers of people for fine-tuning.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from components.settings import Fraction, Positive, to_json
from pipelines.graph import PEOPLE
from pipelines.params import Parameters
from pipelines.schema.section import Section
from pipelines.studies.cells import Cell, Phase, Result, Study
from pipelines.studies.contrasts import interval, status_of_claim, summarise_contrasts
from pipelines.studies.plans import Contrast, Distinct, PhaseSeeds, StudyPlan, require_known
from pipelines.studies.retrieval import METRICS, READS, checked_method, means, person_hits
from pipelines.studies.starts import PublishedModel, Schedule, require_encoder

Source = Literal["base", "taca", "taca_lora", "drawn", "none", "longer"]
WITHOUT = ("none", "longer")
"""Arms without pre-training."""
CACHE, START = "cache", "start"
PRETRAINED = "pretrained"
"""The condition of arms as they are before fine-tuning; no contrast has it."""


class ChainStart(Section):
    """The published models: one draws, the other is trained."""

    generator: PublishedModel
    encoder: PublishedModel


class Corpus(Section):
    """The pictures of pre-training, for captions of `people` of the training split after those of fine-tuning, which are wrong at
    the rate `noise`."""

    people: Positive
    noise: Fraction
    guidance: Annotated[float, Field(ge=1)]


class TrainingPhase(Schedule):
    """A phase of training: its length, and its method as changes to gadms_finetune.method."""

    method: dict[str, Any]


class ChainPlan(StudyPlan):
    """`studies/<name>.yaml` of the kind `chain`."""

    seeds: PhaseSeeds
    start: ChainStart
    corpus: Corpus
    sources: Annotated[list[Source], *Distinct]
    pretraining: TrainingPhase
    finetuning: TrainingPhase
    people: Annotated[list[Positive], *Distinct]
    contrasts: Annotated[list[Contrast], Field(min_length=1)]

    @model_validator(mode="after")
    def _contrasts_of_known_sources(self) -> Self:
        require_known(self.contrasts, [START, *self.sources], [condition(people) for people in self.people])
        return self


def cells(plan: ChainPlan, params: Parameters) -> list[Cell]:
    """Return every cell: the start, then for each seed the corpora, pre-training, and the arms; contrasts on fresh seeds last."""
    for name, phase in (("pretraining", plan.pretraining), ("finetuning", plan.finetuning)):
        checked_method(phase.method, params, f"{name}.method")
    found = [Cell(START, "evaluate", {}, ("pictures",), {**PEOPLE, "start": plan.start.encoder.pretrained})]
    if "taca_lora" in plan.sources:
        inputs = {**PEOPLE, "base_weights": plan.start.generator.pretrained}
        found.append(Cell(CACHE, "cache", {}, ("pictures", "taca_cache"), inputs))
    named = {
        source: [at for c in plan.contrasts for at in c.at if source in (c.arm, c.minus)] for source in plan.sources
    }
    for step, seeds in plan.seeds.by_phase().items():
        for seed, source in product(seeds, plan.sources):
            conditions = [at for at in map(condition, plan.people) if step == "screen" or at in named[source]]
            if conditions:
                found += _of_source(plan, params, source, conditions, seed, step)
    return found


def _of_source(
    plan: ChainPlan, params: Parameters, source: str, conditions: list[str], seed: int, phase: Phase
) -> Iterator[Cell]:
    """Yield the cells of one arm and seed: its pictures, its pre-training, and its fine-tuning under each condition."""
    encoder = {**PEOPLE, "start": plan.start.encoder.pretrained}
    needs: tuple[str, ...] = ()
    if source not in WITHOUT:
        adapter: tuple[str, ...] = ()
        if source == "taca_lora":
            adapter = (f"adapter/seed-{seed}",)
            base = {"base_weights": plan.start.generator.pretrained}
            yield Cell(
                adapter[0], "adapter", {"arm": "taca", "seed": seed}, ("taca", "taca_train"), base, (CACHE,), phase
            )
        settings = {"source": source, "seed": seed, "skip": max(plan.people), **plan.corpus.model_dump()}
        inputs: dict[str, str] = dict(PEOPLE)
        if source != "drawn":
            inputs["base_weights"] = plan.start.generator.pretrained
            settings |= {"schedule": to_json(params.taca) if source != "base" else None}
        drawn = f"corpus/{source}/seed-{seed}"
        yield Cell(drawn, "corpus", settings, ("pictures", "taca_generate"), inputs, adapter, phase)
        needs = (arm_key(source, PRETRAINED, seed),)
        trained = {"seed": seed, **plan.pretraining.model_dump()}
        yield Cell(needs[0], "pretrain", trained, READS, encoder, (drawn,), phase)
    for people in plan.people:
        if condition(people) not in conditions:
            continue
        settings = {"seed": seed, "noise": 0.0, "skip": 0, "people": people, **plan.finetuning.model_dump()}
        if source == "longer":
            settings["steps"] += plan.pretraining.steps
        key = arm_key(source, condition(people), seed)
        yield Cell(key, "finetune", settings, READS, PEOPLE if needs else encoder, needs, phase)


def summarise(plan: ChainPlan, params: Parameters, results: Mapping[str, Result]) -> dict[str, Any]:
    """Return the status of the claim, the contrasts, and the R@1 of each arm by condition and phase, with intervals.

    Under PRETRAINED are the arms before their fine-tuning.
    """
    bootstrap = {"resamples": params.gadms_evaluate.resamples, "seed": params.seed}

    def values(arm: str, at: str, seed: int) -> NDArray[np.float64] | None:
        result = results.get(START if arm == START else arm_key(arm, at, seed))
        return None if result is None else person_hits(result)

    arms: dict[str, dict[str, Any]] = {}
    for at, source in product([PRETRAINED, *map(condition, plan.people)], plan.sources):
        for phase, seeds in plan.seeds.by_phase().items():
            own = {seed: found for seed in seeds if (found := values(source, at, seed)) is not None}
            if row := interval(own, bootstrap):
                done = [results[arm_key(source, at, seed)] for seed in own]
                arms.setdefault(at, {}).setdefault(source, {})[phase] = {**row, **means(done, METRICS)}
    rows = summarise_contrasts(plan.contrasts, plan.seeds.by_phase(), values, bootstrap)
    first = values(START, "", 0)
    return {
        "unit": "R@1 in percent",
        "claim": status_of_claim(rows),
        "contrasts": rows,
        "start": None if first is None else interval({0: first}, bootstrap),
        "arms": arms,
    }


def condition(people: int) -> str:
    """Return the condition of so many people for fine-tuning, as in keys."""
    return f"people-{people}"


def arm_key(source: str, at: str, seed: int) -> str:
    """Return the key of the cell that measures an arm under a condition; under PRETRAINED the one that pre-trains it."""
    return f"pretrain/{source}/seed-{seed}" if at == PRETRAINED else f"arms/{source}/{at}/seed-{seed}"


def require(plan: ChainPlan, params: Parameters, root: Path) -> None:
    """Require the published models. Raises ParameterError or DataError."""
    from components.taca.reference import folder_digest

    require_encoder(plan.start.encoder, params, root, "start.encoder")
    plan.start.generator.require(root, "start.generator", folder_digest)


STUDY = Study(
    plan=ChainPlan, cells=cells, summarise=summarise, code="pipelines.studies.chain_cells", threads=1, require=require
)
