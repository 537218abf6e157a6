"""`python -m pipelines dry-run`: what a run with these parameters would do and need, without weights, data or a GPU.

The parameters are validated, the transformer is built without memory from its configuration, TACA and the LoRA are installed in it,
and a plan is printed: patched modules, trainable parameters, active sampler steps, memory of drawing and of training, what
retrieval would train, and what is missing. Nothing is written or downloaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from components.errors import DataError
from components.taca.conventions import latent_shape, sampler_sigmas
from components.taca.footprint import TrainingMemory, count_activations, counts_activations, training_memory
from components.taca.generation import active_steps
from components.taca.install import enable_taca
from components.taca.lora import add_lora
from components.taca.model_schedule import resolve_schedule
from components.taca.reference import DTYPES
from components.taca.schedule import TemperatureSchedule
from components.training.context import Strategy
from pipelines import presets
from pipelines.health import architectures
from pipelines.health.architectures import Architecture
from pipelines.health.drawing_plan import DrawingPlan, drawing_note, drawing_plan, drawing_table
from pipelines.health.encoder_plan import ENCODER_SECTIONS, encoder_table
from pipelines.health.weights import check_weights
from pipelines.params import Parameters
from pipelines.workspace import Workspace

GPUS = (1, 2, 4, 8)
GPU_SIZES = (24, 40, 48, 80, 141)
"""GPU memory in GB."""


@dataclass(frozen=True)
class TrainingLayout:
    """The memory of training with one strategy and number of GPUs. `batch` is the micro-batch of one GPU."""

    strategy: str
    gpus: int
    batch: int
    bytes: TrainingMemory

    @property
    def smallest_gpu(self) -> str:
        return next((f"{size} GB" for size in GPU_SIZES if self.bytes.fits(size * 1e9)), "none")


@dataclass(frozen=True)
class RunPlan:
    """The facts that the dry run prints. memory: of training; none where activations of the family cannot be counted, and then
    `without_activations` are its bytes on one GPU without them. drawing: None where the pipeline's other parts are not known."""

    architecture: Architecture
    schedule: TemperatureSchedule
    parameters: int
    patched_modules: int
    joint_layers: int
    trainable: int
    image_tokens: int
    sigmas: tuple[float, ...]
    active_steps: int
    memory: tuple[TrainingLayout, ...]
    activations_without_checkpointing: int
    without_activations: int
    drawing: DrawingPlan | None
    missing: tuple[str, ...]


def dry_run(workspace: Workspace, preset: str | None = None, architecture: Path | None = None) -> None:
    """Print the plan. Raises ParameterError or DataError for parameters that are not valid; what is missing is not an error."""
    chosen = presets.resolve(workspace.root, preset)
    # A preset that states nothing of the encoder or its training is for TACA alone: retrieval does not read its pictures.
    retrieval = preset is None or bool(ENCODER_SECTIONS & presets.read(preset, workspace.root).keys())
    show(plan(chosen, workspace, architecture), chosen, Console(), retrieval=retrieval)


def plan(chosen: Parameters, workspace: Workspace, architecture: Path | None = None) -> RunPlan:
    """Compute everything that is printed."""
    size = chosen.pictures
    model = architectures.find(chosen, workspace.root, architecture)
    tokens = model.image_tokens(size.height, size.width)
    schedule = resolve_schedule(chosen.taca, model.pipe, tokens=tokens, steps=chosen.taca_generate.steps)
    drawing = drawing_plan(model, workspace.root, size.height, size.width)
    transformer = nn.Module.to(model.pipe.transformer, DTYPES[chosen.taca_train.base_dtype])
    handle = enable_taca(model.pipe, schedule)
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    lora = chosen.taca_train
    trainable = add_lora(transformer, lora.rank, chosen.seed, alpha=lora.alpha, targets=lora.targets)
    sigmas = sampler_sigmas(model.pipe, chosen.taca_generate.steps, size.height, size.width)
    dtype = DTYPES[chosen.taca_generate.base_dtype]
    memory, without = _memory(chosen, model)
    return RunPlan(
        architecture=model,
        schedule=schedule,
        parameters=parameters,
        patched_modules=handle.patched_modules,
        joint_layers=handle.family.joint_layers(transformer.config),
        trainable=trainable,
        image_tokens=tokens,
        sigmas=tuple(sigmas.tolist()),
        active_steps=active_steps(
            model.pipe, schedule, height=size.height, width=size.width, steps=len(sigmas), dtype=dtype
        ),
        memory=memory,
        activations_without_checkpointing=without,
        without_activations=training_memory(transformer, 0, average=lora.training.ema_decay > 0).total,
        drawing=drawing,
        missing=tuple(missing(chosen, workspace)),
    )


def missing(chosen: Parameters, workspace: Workspace) -> list[str]:
    """Return what is missing for the run, one line each with what to do."""
    weights = [found for found in check_weights(chosen, workspace) if not found.state.is_there]
    lines = [f"{found.subject}: {found.facts}: {'; '.join(found.remarks)}" for found in weights]
    return [*lines, *_missing_data(chosen, workspace)]


def _missing_data(chosen: Parameters, workspace: Workspace) -> list[str]:
    if chosen.prepare.source == "drawn":
        return []
    from components.persons.published.readers import read_listing

    try:
        read_listing(chosen.prepare.source, workspace.path("data/raw"))
    except DataError as error:
        return [f"data: {error}"]
    return []


def _memory(chosen: Parameters, model: Architecture) -> tuple[tuple[TrainingLayout, ...], int]:
    """Compute memory for each strategy and number of GPUs, and the activations of the first without checkpointing; nothing and 0
    where activations of the family cannot be counted."""
    if not counts_activations(model.pipe.transformer):
        return (), 0
    settings, size = chosen.taca_train, chosen.pictures
    _, *latent = latent_shape(model.pipe, size.height, size.width)
    batches = {gpus: max(1, settings.training.batch // (gpus * settings.training.accumulate)) for gpus in GPUS}
    counted = {
        batch: count_activations(
            model.config,
            rank=settings.rank,
            batch=batch,
            latent=(latent[0], latent[1]),
            text_tokens=model.text_tokens,
            dtype=DTYPES[settings.base_dtype],
            autocast=settings.training.precision == "bf16",
        )
        for batch in sorted(set(batches.values()))
    }
    layouts: list[tuple[Strategy, int]] = [*(("ddp", gpus) for gpus in GPUS), *(("fsdp", gpus) for gpus in GPUS[1:])]
    rows = [
        TrainingLayout(
            strategy,
            gpus,
            batches[gpus],
            training_memory(
                model.pipe.transformer,
                counted[batches[gpus]].bytes(checkpointing=settings.gradient_checkpointing),
                strategy=strategy,
                gpus=gpus,
                accumulate=settings.training.accumulate,
                average=settings.training.ema_decay > 0,
            ),
        )
        for strategy, gpus in layouts
    ]
    return tuple(rows), counted[batches[1]].bytes(checkpointing=False)


def show(found: RunPlan, chosen: Parameters, console: Console, *, retrieval: bool = True) -> None:
    """Print a plan, with what `retrieval` would train or without."""
    console.print(_model_table(found, chosen))
    if found.drawing:
        console.print(drawing_table(found.drawing))
        console.print(drawing_note(found.drawing), style="dim", highlight=False)
    if found.memory:
        console.print(_memory_table(found.memory))
    console.print(_memory_note(found), style="dim", highlight=False)
    if retrieval:
        console.print(encoder_table(chosen))
    if not found.missing:
        console.print("Nothing is missing.")
    for line in found.missing:
        console.print(f"missing: {line}", markup=False, highlight=False, soft_wrap=True)


def _memory_note(found: RunPlan) -> str:
    if not found.memory:
        name = found.architecture.config["_class_name"]
        return (
            f"Memory of LoRA training: activations of {name} are not computed; without them, one GPU needs "
            f"{_gb(found.without_activations)} GB.\n"
        )
    return (
        "Computed, not measured: what autograd keeps for one micro-batch, not the CUDA context (about 1 GB), gradients of "
        "activations or fragmentation; the last row reserves 15 % for them. A batch must divide by the GPUs; where this one "
        "does not, that of a GPU is rounded down, to at least one. Without gradient checkpointing, activations are "
        f"{_gb(found.activations_without_checkpointing)} GB on one GPU.\n"
    )


def _model_table(found: RunPlan, chosen: Parameters) -> Table:
    model, size, schedule = found.architecture, chosen.pictures, found.schedule
    tokens = f"{found.image_tokens} image, {model.text_tokens} text ({found.image_tokens / model.text_tokens:.1f} : 1)"
    table = Table(title="Dry run", title_justify="left", show_header=False)
    rows = [
        ("base model", _base(chosen)),
        ("architecture", f"{model.config['_class_name']}, {found.parameters / 1e6:,.1f} M ({model.origin})"),
        ("pictures", f"{size.height}x{size.width}: {tokens}"),
        ("TACA", f"{schedule.form}, gamma {schedule.gamma:g} at sigma >= {schedule.active_from:.4g}"),
        ("patched modules", f"{found.patched_modules} of {found.joint_layers} joint attention layers"),
        ("LoRA", f"rank {chosen.taca_train.rank}: {found.trainable / 1e6:.1f} M trainable parameters"),
        ("sampler", f"{len(found.sigmas)} steps: sigma {_levels(found.sigmas[:6])} ..."),
        ("active steps", f"{found.active_steps} of {len(found.sigmas)}"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _base(chosen: Parameters) -> str:
    source, revision = chosen.base_model.source, chosen.base_model.revision
    return source if source == "tiny" else f"{source} at {revision or 'no revision'}"


def _levels(sigmas: Sequence[float]) -> str:
    return " ".join(f"{sigma:.4f}" for sigma in sigmas)


def _memory_table(memory: Sequence[TrainingLayout]) -> Table:
    """A column per layout, which fits into 80 characters; where it does not, a number continues on the next line."""
    table = Table(title="Memory of LoRA training, GB on each GPU", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("GPUs", overflow="fold")
    for row in memory:
        table.add_column(f"{row.strategy} {row.gpus}", justify="right", overflow="fold")
    rows: list[tuple[str, Callable[[TrainingLayout], str]]] = [
        ("batch a GPU", lambda row: str(row.batch)),
        ("weights", lambda row: _gb(row.bytes.weights)),
        ("gathered", lambda row: _gb(row.bytes.gathered)),
        ("LoRA", lambda row: _gb(row.bytes.lora)),
        ("gradients", lambda row: _gb(row.bytes.gradients)),
        ("Adam", lambda row: _gb(row.bytes.optimizer)),
        ("average", lambda row: _gb(row.bytes.average)),
        ("activations", lambda row: _gb(row.bytes.activations)),
        ("total", lambda row: _gb(row.bytes.total)),
        ("fits", lambda row: row.smallest_gpu),
    ]
    for name, value in rows:
        table.add_row(name, *map(value, memory), end_section=name == "activations")
    return table


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e8 or count == 0 else f"{count / 1e9:.3f}"
