"""The stages, the files that each reads and writes, and every other fact about a stage.

`dvc.yaml` is written from this file (`make dag`), the runner resolves a stage's paths with it, and the report walks it.
A path may hold `{arm}`; a stage with arms is one DVC stage per arm (`taca_train@lora`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from components.errors import ParameterError
from pipelines.errors import REPRO_COMMAND, did_you_mean

TACA_ARMS = ("base", "lora", "taca", "taca_lora")
ADAPTERS = ("lora", "taca")
GADMS_ARMS = ("gadms", "random", "unmasked")
METHODS = ("taca", "gadms")


@dataclass(frozen=True)
class Stage:
    """The facts about a stage. Its code is `pipelines/stages/<name>.py`, a function `run`."""

    name: str
    about: str
    """One sentence for the report."""
    reads: tuple[str, ...]
    """Top-level keys of its parameter file that its result depends on."""
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    arms: tuple[str, ...] = ()
    arm_inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Inputs that only some arms have."""
    curves: bool = False
    """Whether it reports metrics over steps, written as a DVC plot."""
    trains: bool = False
    """Whether it is a training run, to be launched by Ray Train."""
    draws: bool = False
    """Whether it draws many pictures with the text-to-image model."""
    starts_workers: bool = False
    """Whether it starts Ray Train workers itself, wherever it runs."""
    code: tuple[str, ...] = ()
    """Other stages whose code it calls."""
    headlines: Mapping[str, str] = field(default_factory=dict)
    """Its numbers by which executions of the pipeline are compared: name -> path in its metrics, where `*` is any key."""
    parameters: str = "params.yaml"
    """The file of its parameters."""

    @property
    def heavy(self) -> bool:
        """Whether it is a Ray job of its own with `compute.backend: job`."""
        return self.trains or self.draws


@dataclass(frozen=True)
class StageRun:
    """One stage of the graph, or one arm of it, with its paths filled in (relative to the workspace, POSIX)."""

    stage: Stage
    arm: str | None

    @property
    def address(self) -> str:
        """`taca_train@lora`, as DVC writes it."""
        return f"{self.stage.name}@{self.arm}" if self.arm else self.stage.name

    @property
    def inputs(self) -> dict[str, str]:
        own = self.stage.arm_inputs.get(self.arm or "", {})
        return {name: self._fill(path) for name, path in {**self.stage.inputs, **own}.items()}

    @property
    def outputs(self) -> dict[str, str]:
        return {name: self._fill(path) for name, path in self.stage.outputs.items()}

    @property
    def metrics(self) -> str:
        return self._table("metrics", "json")

    @property
    def headline_file(self) -> str | None:
        """The file of its headline numbers, which are what `dvc exp show` and `dvc metrics` show."""
        return self._table("metrics", "headlines.json") if self.stage.headlines else None

    @property
    def curves(self) -> str | None:
        return self._table("curves", "csv") if self.stage.curves else None

    @property
    def all_outputs(self) -> list[str]:
        """Every path it writes: outputs, metrics, headline numbers, curves."""
        return [*self.outputs.values(), *filter(None, (self.metrics, self.headline_file, self.curves))]

    def headlines(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The headline numbers in this stage's metrics, by name, arm and what `*` stands for: `alignment.taca.guidance_1`."""
        found = {}
        for name, path in self.stage.headlines.items():
            for matched, value in _matching(metrics, path.split(".")):
                found[".".join([name, *([self.arm] if self.arm else []), *matched])] = float(value)
        return found

    def _table(self, folder: str, suffix: str) -> str:
        return str(PurePosixPath(folder, self.stage.name, f"{self.arm or 'all'}.{suffix}"))

    def _fill(self, path: str) -> str:
        return path.format(arm=self.arm)


def _matching(value: Any, path: Sequence[str]) -> Iterator[tuple[list[str], float]]:
    """Yield the numbers at `path`, each with the keys that its `*` stand for."""
    if not path and isinstance(value, (int, float)):
        yield [], value
    elif path and isinstance(value, Mapping):
        for key in value if path[0] == "*" else {path[0]} & set(value):
            for matched, number in _matching(value[key], path[1:]):
                yield [*([key] if path[0] == "*" else []), *matched], number


PEOPLE = {"people": "data/people"}
BASE = {"base": "models/base.json", "base_weights": "models/base"}

STAGES: tuple[Stage, ...] = (
    Stage(
        "prepare",
        "Draws people and captions or reads a published set, checks every record, and splits by identity.",
        ("seed", "pictures", "prepare"),
        {"raw": "data/raw"},
        PEOPLE,
    ),
    Stage(
        "probe",
        "Trains the attribute classifier that judges generated people, on real pictures only.",
        ("seed", "pictures", "probe"),
        PEOPLE,
        {"probe": "models/probe"},
        curves=True,
        trains=True,
    ),
    Stage(
        "base_model",
        "Trains the small FLUX text-to-image pipeline, or pins a published one.",
        ("seed", "pictures", "base_model"),
        PEOPLE,
        BASE,
        curves=True,
        trains=True,
    ),
    Stage(
        "taca_cache",
        "Encodes training pictures and captions once.",
        ("pictures", "taca_cache"),
        {**PEOPLE, **BASE},
        {"cache": "data/taca_cache"},
    ),
    Stage(
        "taca_train",
        "Trains a LoRA above the threshold: under the temperature schedule, and at γ = 1 as a control.",
        ("seed", "taca", "taca_train"),
        {**BASE, "cache": "data/taca_cache"},
        {"adapter": "models/adapters/{arm}"},
        arms=ADAPTERS,
        curves=True,
        trains=True,
    ),
    Stage(
        "taca_generate",
        "Draws people for prompts with every arm, from the same noise, and a corpus for retrieval.",
        ("seed", "pictures", "taca", "taca_generate"),
        {**PEOPLE, **BASE},
        {"generated": "data/generated/{arm}"},
        arms=TACA_ARMS,
        arm_inputs={"lora": {"adapter": "models/adapters/lora"}, "taca_lora": {"adapter": "models/adapters/taca"}},
        draws=True,
    ),
    Stage(
        "taca_evaluate",
        "Asks the probe whether generated people show what their prompts state.",
        ("seed", "taca_evaluate"),
        {"probe": "models/probe", "generated": "data/generated/{arm}"},
        {"alignment": "results/alignment/{arm}.parquet"},
        arms=TACA_ARMS,
        headlines={"alignment": "*.alignment.mean"},
    ),
    Stage(
        "taca_attention",
        "Measures how much of the image's attention goes to the text, with and without TACA.",
        ("seed", "pictures", "taca", "taca_generate", "taca_attention"),
        {**PEOPLE, **BASE},
        {"attention": "results/attention.parquet"},
        headlines={"attention_to_text": "difference.mean"},
    ),
    Stage(
        "curate",
        "Keeps the generated people that are sharp enough and match their captions.",
        ("seed", "pictures", "retrieval", "curate"),
        {**PEOPLE, "generated": "data/generated/taca_lora"},
        {"curated": "data/curated"},
        curves=True,
        trains=True,
    ),
    Stage(
        "gadms_pretrain",
        "Pre-trains the dual encoder on generated people, one arm per masking method.",
        ("seed", "pictures", "retrieval", "gadms_pretrain"),
        {**PEOPLE, "curated": "data/curated"},
        {"model": "models/pretrained/{arm}"},
        arms=GADMS_ARMS,
        curves=True,
        trains=True,
    ),
    Stage(
        "gadms_finetune",
        "Fine-tunes it on real people by the same method.",
        ("seed", "pictures", "retrieval", "gadms_finetune"),
        {**PEOPLE, "pretrained": "models/pretrained/{arm}"},
        {"model": "models/retrieval/{arm}"},
        arms=GADMS_ARMS,
        curves=True,
        trains=True,
    ),
    Stage(
        "gadms_evaluate",
        "Finds people of the test split by their captions; scores words of noisy captions.",
        ("seed", "pictures", "gadms_evaluate"),
        {**PEOPLE, "model": "models/retrieval/{arm}"},
        {"ranks": "results/retrieval/{arm}.parquet", "scores": "results/scores/{arm}.parquet"},
        arms=GADMS_ARMS,
        headlines={"R@1": "R@1", "mAP": "mAP", "noise_auc": "noise_auc"},
    ),
    Stage(
        "index",
        "Embeds the gallery for text search.",
        ("pictures", "index"),
        {**PEOPLE, "model": "models/retrieval/gadms"},
        {"index": "data/index"},
    ),
    Stage(
        "train_parity",
        "Trains the same steps in one process and with Ray Train workers.",
        ("seed", "pictures", "taca", "taca_train", "retrieval", "gadms_pretrain", "train_parity"),
        {},
        {"parity": "results/parity/{arm}.csv"},
        arms=METHODS,
        arm_inputs={"taca": {**BASE, "cache": "data/taca_cache"}, "gadms": {**PEOPLE, "curated": "data/curated"}},
        starts_workers=True,
        code=("taca_train", "gadms_pretrain"),
    ),
)

RECIPE = "pretraining/recipe.yaml"
CHECKPOINTS = "pretraining/checkpoints"
PRETRAINING_PREFIX = "pretrain_"
"""Begins the names of the stages of pre-training; the rest is what the verb `pretrain` calls them."""
_PARTS = {part: f"pretraining/parts/{part}" for part in ("autoencoder", "generator", "decoder", "encoder", "probe")}


def _pretraining(part: str, about: str, *needed: str) -> Stage:
    name = f"{PRETRAINING_PREFIX}{part}"
    return Stage(
        name,
        about,
        ("seed", "pictures", name),
        {name: _PARTS[name] for name in needed},
        {part: _PARTS[part]},
        curves=True,
        trains=True,
        parameters=RECIPE,
    )


PRETRAINING: tuple[Stage, ...] = (
    _pretraining("autoencoder", "Trains the VAE of the small text-to-image model."),
    _pretraining("generator", "Trains the small FLUX pipeline in the latents of that VAE.", "autoencoder"),
    _pretraining("decoder", "Fine-tunes the VAE's decoder until pictures look drawn.", "generator"),
    _pretraining("encoder", "Trains the dual encoder and its masked-token decoder, on pictures of another domain."),
    _pretraining("probe", "Trains the attribute classifier."),
    Stage(
        "pretrain_publish",
        "Evaluates them on people that no training has seen, and writes them with model cards.",
        ("seed", "pictures", *(f"pretrain_{part}" for part in (*_PARTS, "publish"))),
        {"generator": _PARTS["decoder"], "encoder": _PARTS["encoder"], "probe": _PARTS["probe"]},
        {"checkpoints": CHECKPOINTS},
        parameters=RECIPE,
    ),
)
"""A pipeline of its own, `python -m pipelines pretrain`: what it gives is published in the repository. No stage of the default
pipeline reads an output of it, but as published weights that params.yaml names."""


def _all_results() -> dict[str, str]:
    """Every metric, curve and result table: what the report reads, named by its path."""
    paths: list[str] = []
    for stage in STAGES:
        for run in runs_of(stage):
            paths += [run.metrics, *([run.curves] if run.curves else [])]
            paths += [path for path in run.outputs.values() if path.startswith("results/")]
    return {path: path for path in paths}


def runs_of(stage: Stage) -> list[StageRun]:
    """The stage, or one entry for each of its arms."""
    return [StageRun(stage, arm) for arm in stage.arms or (None,)]


def report_stage() -> Stage:
    """The last stage: it reads every result, and the pictures it shows."""
    pictures = {f"generated/{arm}": f"data/generated/{arm}" for arm in TACA_ARMS}
    return Stage(
        "report",
        "Collects every result.",
        ("seed", "pictures", "report"),
        {
            **_all_results(),
            **PEOPLE,
            "curated": "data/curated",
            "index": "data/index",
            "model": "models/retrieval/gadms",
            **pictures,
        },
        {"report": "reports/report.json", "figures": "reports/figures"},
        headlines={"checks_met": "checks_met"},
    )


def all_stages() -> tuple[Stage, ...]:
    """Every stage, in an order in which each comes after what it reads."""
    return (*STAGES, report_stage())


def all_runs() -> list[StageRun]:
    """Every arm of every stage, in the order of `all_stages`."""
    return [run for stage in all_stages() for run in runs_of(stage)]


@cache
def producers() -> Mapping[str, StageRun]:
    """The stage run that writes each output path, metrics and curves included."""
    return {path: run for run in all_runs() for path in run.all_outputs}


def with_upstream(runs: Iterable[StageRun]) -> list[StageRun]:
    """`runs` and all that they need, each after what it reads."""
    todo, wanted = list(runs), set()
    while todo:
        run = todo.pop()
        if run.address not in wanted:
            wanted.add(run.address)
            todo += [producers()[path] for path in run.inputs.values() if path in producers()]
    return [run for run in all_runs() if run.address in wanted]


def find(address: str) -> StageRun:
    """The stage named `name` or `name@arm`, of both pipelines. Raises ParameterError naming what there is."""
    return _find(address, (*all_stages(), *PRETRAINING))


def find_default(address: str) -> StageRun:
    """The stage named `name` or `name@arm` of the default pipeline.

    Raises ParameterError naming what there is; for a stage of pre-training, the command that runs it.
    """
    for stage in PRETRAINING:
        if address == stage.name:
            raise ParameterError(f"{address}: a stage of pre-training: run `{command_for(StageRun(stage, None))}`")
    return _find(address, all_stages())


def command_for(run: StageRun) -> str:
    """The command that brings a stage up to date."""
    if run.stage in PRETRAINING:
        return f"python -m pipelines pretrain {run.stage.name.removeprefix(PRETRAINING_PREFIX)}"
    return f"{REPRO_COMMAND} {run.address}"


def _find(address: str, among: Iterable[Stage]) -> StageRun:
    name, _, arm = address.partition("@")
    stages = {stage.name: stage for stage in among}
    if name not in stages:
        meant = did_you_mean(name, stages)
        raise ParameterError(f"stage {name!r} does not exist: one of {', '.join(stages)}{meant}")
    stage = stages[name]
    if (arm or None) not in (stage.arms or (None,)):
        allowed = ", ".join(f"{name}@{a}" for a in stage.arms) or name
        meant = did_you_mean(address, allowed.split(", "))
        raise ParameterError(f"stage {address!r} does not exist: write {allowed}{meant}")
    return StageRun(stage, arm or None)
