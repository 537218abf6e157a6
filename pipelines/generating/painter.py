"""Draws shards: loads the model once, and writes each shard as a file by a rename."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.errors import DataError
from components.files import file_digest, written_atomically
from components.persons.pixels import encode_png
from components.persons.shards import PARQUET_SETTINGS, ROWS_PER_GROUP
from components.taca.config import TacaConfig
from components.taca.generation import Adapter, Arm, active_steps, apply_arm, generate, schedule_for_pictures
from components.taca.reference import DTYPES, load_base, read_reference
from components.taca.schedule import TemperatureSchedule
from pipelines.engine.ray_cluster import device_of
from pipelines.engine.warm import silence_import_notices
from pipelines.generating.plan import Shard
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

    taca: the section of params.yaml, whose threshold may be a rule; None for stock attention.
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

    def recorded(self, threads: int) -> dict[str, Any]:
        """Return everything that the pictures depend on, as JSON values without a path.

        As in a stage's fingerprint: contents of the inputs, the code that draws, the package lock, the thread count; not the
        number of workers or their device. Raises DataError for a model or adapter that is missing.
        """
        contents = [tree_digests(adapter.path) for adapter in self.adapters]
        for adapter, files in zip(self.adapters, contents, strict=True):
            if not files:
                raise DataError(
                    f"{adapter.path}: no adapter there; train one (`dvc repro taca_train@taca`) or leave --adapter out"
                )
        return {
            **asdict(self),
            "generator": GENERATOR_VERSION,
            "model": digest(read_reference(self.model)["files"]),
            "adapters": [
                {"file": digest(files), "weight": adapter.weight, "threshold": adapter.threshold}
                for adapter, files in zip(self.adapters, contents, strict=True)
            ],
            "threads": threads,
            "code": sources_digest(find("taca_generate@base")),
            "packages": file_digest(ROOT / LOCK),
        }


@dataclass(frozen=True)
class DrawnShard:
    """A finished shard: its SHA-256, and at how many of the sampler's steps TACA and each adapter were on."""

    digest: str
    active_steps: int
    adapter_steps: tuple[int, ...]


class Painter:
    """Draws shards into the folder `shards`. Loads the model with the first shard."""

    def __init__(self, drawing: DrawSettings, shards: Path, compute: Compute) -> None:
        self._drawing, self._shards, self._compute = drawing, shards, compute
        self._pipe: Any = None
        self._schedule: TemperatureSchedule | None = None
        self._arm = ExitStack()

    def ready(self) -> None:
        """Return at once; an actor that answers has started."""

    def draw(self, shard: Shard) -> DrawnShard:
        """Draw and write one shard. Raises DataError and ParameterError as loading and drawing do."""
        if self._pipe is None:
            self._load()
        drawing = self._drawing
        pictures = generate(
            self._pipe,
            [picture.prompt for picture in shard.pictures],
            [picture.seed for picture in shard.pictures],
            height=drawing.height,
            width=drawing.width,
            steps=drawing.steps,
            guidance=drawing.guidance,
            embedded_guidance=drawing.embedded_guidance,
            batch_size=drawing.batch,
        )
        path = self._shards / shard.name
        write_shard(shard, [encode_png(picture) for picture in pictures], path)

        def count(schedule: TemperatureSchedule) -> int:
            size: dict[str, Any] = {"height": drawing.height, "width": drawing.width}
            return active_steps(self._pipe, schedule, steps=drawing.steps, **size)

        thresholds = [adapter.active_from() for adapter in drawing.adapters]
        return DrawnShard(
            file_digest(path),
            count(self._schedule) if self._schedule else 0,
            tuple(count(TemperatureSchedule(threshold=threshold)) for threshold in thresholds),
        )

    def close(self) -> None:
        """Release the model."""
        self._arm.close()
        self._pipe = None

    def _load(self) -> None:
        warn_of_too_many_threads(self._compute.threads)
        torch.set_num_threads(self._compute.threads)
        drawing = self._drawing
        silence_import_notices()  # in an actor of Ray no command has done it
        pipe = load_base(drawing.model, dtype=DTYPES[drawing.dtype]).to(device_of(self._compute))
        if drawing.taca is not None:
            self._schedule = schedule_for_pictures(
                pipe, TacaConfig(**drawing.taca), height=drawing.height, width=drawing.width, steps=drawing.steps
            )
        self._arm.enter_context(apply_arm(pipe, Arm(drawing.adapters, self._schedule)))
        self._pipe = pipe


def write_shard(shard: Shard, images: list[bytes], path: Path) -> None:
    """Write a shard as Parquet with fixed settings, so that the same pictures give the same bytes; by a rename."""
    columns = {name: [getattr(picture, name) for picture in shard.pictures] for name in SCHEMA.names if name != "image"}
    with written_atomically(path) as temporary:
        pq.write_table(
            pa.table({**columns, "image": images}, schema=SCHEMA),
            temporary,
            compression="none",  # PNG is compressed already
            row_group_size=ROWS_PER_GROUP,
            **PARQUET_SETTINGS,
        )
