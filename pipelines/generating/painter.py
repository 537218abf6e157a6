"""Draws shards: loads the model once, and writes each shard as a file by a rename."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from components.errors import DataError
from components.files import file_digest, written_atomically
from components.persons.pixels import decode_rgb, encode_png
from components.persons.shards import PARQUET_SETTINGS, ROWS_PER_GROUP
from components.taca.adapter_slot import AdapterSlot
from components.taca.config import TacaConfig
from components.taca.generation import Adapter, Arm, active_steps, apply_arm, generate, schedule_for_pictures
from components.taca.memory_options import Quantization
from components.taca.offloading import place, require_offloading
from components.taca.quantization import require_gguf, require_quantizable
from components.taca.reference import DTYPES, load_base, read_reference
from components.taca.schedule import TemperatureSchedule
from components.taca.source_pictures import SourcePicture, from_pictures, resolve_strength, skipped_steps
from pipelines.engine.ray_cluster import device_of
from pipelines.engine.warm import silence_import_notices
from pipelines.errors import REPRO_COMMAND
from pipelines.generating.plan import Shard
from pipelines.generating.prompts import SourceFile
from pipelines.graph import find
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import LOCK, digest, tree_digests
from pipelines.records.stage_record import sources_digest
from pipelines.schema.running import Compute
from pipelines.threads.cores import warn_of_too_many_threads

GENERATOR_VERSION = 1
"""Raised when this package writes something else; the code that draws is recorded by its digest."""

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("index", pa.int32()),
        ("image", pa.binary()),
    ]
)


@dataclass(frozen=True)
class DrawSettings:
    """The settings that determine the picture of a (prompt, seed).

    taca: the section of params.yaml, whose threshold may be a rule; None for stock attention. each: LoRAs by label, of which a
    shard has one, in place by its turn. negative_prompt: for pictures without one of their own. strength: None for the
    pipeline's own. gguf: a file to read the transformer from.
    """

    model: Path
    adapters: tuple[Adapter, ...]
    taca: Mapping[str, Any] | None
    height: int
    width: int
    steps: int
    guidance: float
    embedded_guidance: float
    dtype: str
    batch: int
    each: Mapping[str, Adapter] = field(default_factory=dict)
    negative_prompt: str = ""
    strength: float | None = None
    quantize: Quantization = "none"
    gguf: Path | None = None

    def recorded(self, threads: int) -> dict[str, Any]:
        """Return everything that the pictures depend on, as JSON values without a path.

        As in a stage's fingerprint: contents of the inputs, the code that draws, the package lock, the thread count; not the
        number of workers or their device. Raises DataError for a model or adapter that is missing.
        """
        if self.gguf:
            require_gguf(self.gguf)
        return {
            **asdict(self),
            "generator": GENERATOR_VERSION,
            "model": digest(read_reference(self.model)["files"]),
            "gguf": file_digest(self.gguf) if self.gguf else None,
            "adapters": [_recorded(adapter) for adapter in self.adapters],
            "each": {label: _recorded(adapter) for label, adapter in self.each.items()},
            "threads": threads,
            "code": sources_digest(find("taca_generate@base")),
            "packages": file_digest(ROOT / LOCK),
        }


def _recorded(adapter: Adapter) -> dict[str, Any]:
    """Return what pictures depend on of a LoRA. Raises DataError if there is none."""
    files = tree_digests(adapter.path)
    if not files:
        raise DataError(
            f"{adapter.path}: no adapter there; train one (`{REPRO_COMMAND} taca_train@taca`) or leave --adapter out"
        )
    return {"file": digest(files), "weight": adapter.weight, "threshold": adapter.threshold}


@dataclass(frozen=True)
class DrawnShard:
    """A finished shard: its SHA-256, and of the sampler's `steps` that were taken, at how many TACA and each adapter were on, last
    the one whose turn it was."""

    digest: str
    steps: int
    active_steps: int
    adapter_steps: tuple[int, ...]


class Painter:
    """Draws shards into the folder `shards`. Loads the model with the first shard."""

    def __init__(self, drawing: DrawSettings, shards: Path, compute: Compute) -> None:
        self._drawing, self._shards, self._compute = drawing, shards, compute
        self._pipe: Any = None
        self._schedule: TemperatureSchedule | None = None
        self._arm = ExitStack()
        self._slot: AdapterSlot | None = None
        self._turn = ""

    def ready(self) -> None:
        """Return at once; an actor that answers has started."""

    def draw(self, shard: Shard) -> DrawnShard:
        """Draw and write one shard. Raises DataError and ParameterError as loading and drawing do."""
        if self._pipe is None:
            self._load(shard)
        drawing = self._drawing
        if self._slot and shard.adapter != self._turn:
            self._take_turn(shard)
        negative = [drawing.negative_prompt if one.negative is None else one.negative for one in shard.pictures]
        pictures = generate(
            self._pipe,
            [picture.prompt for picture in shard.pictures],
            [picture.seed for picture in shard.pictures],
            height=drawing.height,
            width=drawing.width,
            steps=drawing.steps,
            guidance=drawing.guidance,
            embedded_guidance=drawing.embedded_guidance,
            negative_prompts=negative,
            sources=_sources(shard),
            strength=drawing.strength,
            batch_size=drawing.batch,
        )
        path = self._shards / shard.name
        write_shard(shard, [encode_png(picture) for picture in pictures], path)

        strength = resolve_strength(self._pipe, drawing.strength)

        def count(schedule: TemperatureSchedule) -> int:
            size: dict[str, Any] = {"height": drawing.height, "width": drawing.width}
            return active_steps(self._pipe, schedule, steps=drawing.steps, strength=strength, **size)

        inside = [*drawing.adapters, *([drawing.each[shard.adapter]] if shard.adapter else [])]
        thresholds = [adapter.active_from() for adapter in inside]
        return DrawnShard(
            file_digest(path),
            drawing.steps - skipped_steps(drawing.steps, strength),
            count(self._schedule) if self._schedule else 0,
            tuple(count(TemperatureSchedule(threshold=threshold)) for threshold in thresholds),
        )

    def close(self) -> None:
        """Release the model."""
        if self._slot:
            self._slot.empty()
        self._arm.close()
        self._pipe, self._slot, self._turn = None, None, ""

    def _take_turn(self, shard: Shard) -> None:
        assert self._slot is not None
        self._slot.fill(self._drawing.each[shard.adapter])
        self._turn = shard.adapter

    def _load(self, shard: Shard) -> None:
        warn_of_too_many_threads(self._compute.threads)
        torch.set_num_threads(self._compute.threads)
        drawing = self._drawing
        silence_import_notices()  # in an actor of Ray no command has done it
        device, dtype = device_of(self._compute), DTYPES[drawing.dtype]
        require_offloading(self._compute.offload, device)
        require_quantizable(drawing.quantize, dtype, self._compute.offload)
        pipe = load_base(drawing.model, dtype=dtype, quantize=drawing.quantize, gguf=drawing.gguf)
        if shard.pictures[0].image:
            pipe = from_pictures(pipe, masks=shard.pictures[0].mask is not None)
        if drawing.taca is not None:
            self._schedule = schedule_for_pictures(
                pipe, TacaConfig(**drawing.taca), height=drawing.height, width=drawing.width, steps=drawing.steps
            )
        self._arm.enter_context(apply_arm(pipe, Arm(drawing.adapters, self._schedule)))
        if drawing.each:
            self._slot = AdapterSlot(pipe)
            self._take_turn(shard)
        self._pipe = place(pipe, device, self._compute.offload)  # after the LoRAs, whose layers move with the others


def _sources(shard: Shard) -> list[SourcePicture] | None:
    """Read the pictures that a shard is drawn from; None for one that is drawn from noise. Raises DataError for a changed file."""
    if shard.pictures[0].image is None:
        return None

    def read(file: SourceFile | None) -> Image.Image | None:
        if file is None:
            return None
        content = file.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != file.digest:
            raise DataError(f"{file.path}: has changed while the command runs; run it again into another --output")
        return decode_rgb(content)

    pairs = [(read(picture.image), read(picture.mask)) for picture in shard.pictures]
    return [SourcePicture(image, mask.convert("L") if mask else None) for image, mask in pairs if image]


def write_shard(shard: Shard, images: list[bytes], path: Path) -> None:
    """Write a shard as Parquet with fixed settings, so that the same pictures give the same bytes; by a rename."""
    schema = SCHEMA.append(pa.field("adapter", pa.string())) if shard.adapter else SCHEMA
    columns = {name: [getattr(picture, name) for picture in shard.pictures] for name in schema.names if name != "image"}
    with written_atomically(path) as temporary:
        pq.write_table(
            pa.table({**columns, "image": images}, schema=schema),
            temporary,
            compression="none",  # PNG is compressed already
            row_group_size=ROWS_PER_GROUP,
            **PARQUET_SETTINGS,
        )
