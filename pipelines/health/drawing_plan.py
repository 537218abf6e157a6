"""The dry run's table of what drawing needs: which card holds the model, with which offloading and quantisation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from components.errors import DataError
from components.taca.conventions import latent_shape
from components.taca.drawing_memory import DrawingMemory, decoding_bytes, forward_bytes, part_size, skeleton_part
from components.taca.footprint import MARGIN
from components.taca.memory_options import Offload
from components.taca.offloading import LEAST_FIRST
from components.taca.quantization import is_small_encoder
from pipelines.health.architectures import FOLDER, Architecture

CARDS = (24, 48, 80, 141)
"""GPU memory in GB."""
KINDS: Mapping[str, Mapping[str, str]] = {
    "bf16": {},
    "int8 (or fp8)": {"*": "int8"},
    "GGUF Q4_K, text int8": {"*": "int8", "transformer": "Q4_K"},
    "nf4": {"*": "nf4"},
}
"""Rows of the table: the bits of each part, "*" for all others."""


@dataclass(frozen=True)
class DrawingPlan:
    """What drawing one picture needs. source: of the sizes of parts beside the transformer."""

    memory: DrawingMemory
    source: str

    def least(self, kinds: Mapping[str, str], gigabytes: int) -> Offload | None:
        """Return the least offloading with which a card of so many GB draws; None if none is enough."""
        room = (1 - MARGIN) * gigabytes * 1e9
        possible = (offload for offload in LEAST_FIRST if offload != "group" or "nf4" not in kinds.values())
        return next((offload for offload in possible if self.bytes(offload, kinds) <= room), None)

    def bytes(self, offload: Offload, kinds: Mapping[str, str]) -> int:
        """Return the bytes on the GPU."""
        return self.memory.bytes(offload, {name: kinds.get(name, kinds.get("*", "bf16")) for name in self.memory.parts})


def drawing_plan(model: Architecture, root: Path, height: int, width: int) -> DrawingPlan | None:
    """Compute what drawing needs; None where the architecture of the other parts is not known (`<name>-parts.json`).

    Raises DataError for a file that is not what it should be.
    """
    file = root / FOLDER / f"{Path(model.origin).stem}-parts.json"
    if not file.is_file():
        return None
    try:
        described: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        source = described.pop("source")
        parts = {name: skeleton_part(config) for name, config in described.items()}
        vae = parts["vae"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: does not describe the parts of a pipeline ({type(error).__name__}: {error})"
        ) from error
    sizes = {"transformer": part_size(model.pipe.transformer, quantised=True)}
    for name, part in parts.items():
        sizes[name] = part_size(part, quantised=name != "vae" and not is_small_encoder(type(part).__name__))
    *_, rows, columns = latent_shape(model.pipe, height, width)
    tokens = model.image_tokens(height, width) + model.text_tokens
    return DrawingPlan(
        DrawingMemory(sizes, forward_bytes(model.config, tokens), decoding_bytes(vae, (rows, columns))), source
    )


def drawing_table(plan: DrawingPlan) -> Table:
    """Return the table: a row for each quantisation, a column for each card with the least offloading that is enough."""
    parts = ", ".join(f"{name} {part.parameters / 1e9:.2f} B" for name, part in plan.memory.parts.items())
    table = Table(title=f"Drawing one picture: {parts}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("weights", overflow="fold")
    for offload in LEAST_FIRST:
        table.add_column(f"{offload}, GB", justify="right", overflow="fold")
    for card in CARDS:
        table.add_column(f"{card} GB", overflow="fold")
    for name, kinds in KINDS.items():
        numbers = [f"{plan.bytes(offload, kinds) / 1e9:.1f}" for offload in LEAST_FIRST]
        table.add_row(name, *numbers, *(plan.least(kinds, card) or "-" for card in CARDS))
    return table


def drawing_note(plan: DrawingPlan) -> str:
    """Return what the table is, and is not."""
    counted, estimated = (f"{count / 1e9:.1f} GB" for count in (plan.memory.decoding, plan.memory.forward))
    return (
        "For each card the least --offload with which it draws; with none all weights stay on it. Sizes of weights are computed "
        f"from configurations ({plan.source}). Of activations the VAE's are counted ({counted}) and the transformer's an estimate "
        f"({estimated}); {MARGIN:.0%} of a card is left for the rest. Nothing here was measured on a GPU. nf4 needs bitsandbytes, "
        "and does not go with offload group.\n"
    )
