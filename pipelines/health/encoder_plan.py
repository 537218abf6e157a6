"""The dry run's table of what the retrieval stages would train, from shapes alone."""

import torch
from rich.table import Table

from components.gadms.decoder import CrossModalDecoder
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.training.config import ValidatedTrainingConfig
from pipelines.params import Parameters
from pipelines.schema.gadms import Retrieval

ENCODER_SECTIONS = {"retrieval", "gadms_pretrain", "gadms_finetune"}
"""The sections of parameters that the table is about."""


def encoder_rows(chosen: Parameters) -> list[tuple[str, str]]:
    """Return (name, description) rows. Raises ParameterError for an architecture that cannot be built."""
    settings = chosen.retrieval
    height, width = settings.image_size or (chosen.pictures.height, chosen.pictures.width)
    with torch.device("meta"):
        encoder = DualEncoder.create(settings.architecture, image_size=(height, width))
    rows, columns = encoder.clip.visual.grid_size
    name = settings.architecture if isinstance(settings.architecture, str) else "of params.yaml"
    start = settings.pretrained or "from scratch; a vocabulary of its training captions' words makes it smaller"
    pretrain, finetune = chosen.gadms_pretrain, chosen.gadms_finetune
    before = f"none: {settings.pretrained or 'an untrained encoder'} as it is"
    if pretrain.corpus != "none":
        before = f"on {pretrain.corpus}: {_phase(pretrain.method, pretrain.training, encoder)}"
    return [
        ("encoder", f"{name}, {_millions(encoder.clip)}: {start}"),
        (
            "pictures",
            f"{height}x{width}{_other_size(settings, height, width)}: {rows} x {columns} patches and the class token",
        ),
        ("pre-training", before),
        ("fine-tuning", f"on people: {_phase(finetune.method, finetune.training, encoder)}"),
    ]


def encoder_table(chosen: Parameters) -> Table:
    """Return `encoder_rows` as a table."""
    table = Table(title="Retrieval", title_justify="left", show_header=False)
    for row in encoder_rows(chosen):
        table.add_row(*row)
    return table


def _other_size(settings: Retrieval, height: int, width: int) -> str:
    """Return the size for which an architecture in params.yaml was written, where pictures have another."""
    stated = settings.architecture["vision_cfg"].get("image_size") if isinstance(settings.architecture, dict) else None
    rows, columns = stated if isinstance(stated, list) else (stated, stated)
    return (
        ""
        if stated is None or (rows, columns) == (height, width)
        else f" (the architecture was written for {rows}x{columns})"
    )


def _phase(method: RetrievalConfig, training: ValidatedTrainingConfig, encoder: DualEncoder) -> str:
    name = method.name or "each arm's method"
    beside = []
    if method.recipe.mtp_weight:  # that of gadms, where each arm has its own
        with torch.device("meta"):
            decoder = CrossModalDecoder(encoder.embed_dim, encoder.clip.vocab_size, depth=method.decoder_depth)
        beside.append(f"decoder {_millions(decoder)}")
    selected = f"selected on val every {training.validate_every} steps" if training.validate_every else "last weights"
    parts = [name, f"{training.steps:,} steps of {training.batch}", training.precision, *beside, selected]
    return ", ".join(parts)


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:,.1f} M"
