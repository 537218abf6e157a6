"""Embeds the pictures of a gallery's source in batches: in this process, or in processes of Ray Data that each hold the model.

The batches are the same in both, so the vectors are, up to the last bits where the processes use other numbers of threads.
"""

import hashlib
import logging
import math
import os
import pickle
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.pixels import decode_rgb
from components.search.encoders import Encoder, open_encoder
from components.search.gallery.places import open_place
from components.search.gallery.thumbnails import encode_thumbnail
from components.training.prefetch import Prefetch
from pipelines.engine.ray_cluster import ray_session, require_bundles, uses_gpu, wants_gpu
from pipelines.errors import InfrastructureError, one_line
from pipelines.schema.running import Compute

CHANGED = "has changed while it was read; the next update takes it"
_DONE_AHEAD = 4
"""Batches per worker that Ray Data may hold in its object store."""


@dataclass(frozen=True)
class Work:
    """A picture to embed: its digest, and the files that have these bytes."""

    sha256: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class EmbeddedBatch:
    """The pictures of a batch that could be embedded, with vectors (n, D), and the others with the reason, by digest."""

    digests: list[str]
    sizes: list[tuple[int, int]]
    thumbnails: list[bytes]
    vectors: np.ndarray
    failed: dict[str, str]


class Embedder:
    """Reads and embeds the pictures of one source."""

    def __init__(self, encoder: Encoder, source: Mapping[str, Any]) -> None:
        self._encoder = encoder
        self._place = open_place(source)

    def read(self, batch: Sequence[Work]) -> tuple[dict[str, Image.Image], dict[str, str]]:
        """Return the decoded pictures of a batch, and the reasons of those that cannot be decoded, both by digest."""
        pictures: dict[str, Image.Image] = {}
        failed: dict[str, str] = {}
        for work in batch:
            try:
                pictures[work.sha256] = decode_rgb(self._content(work))
            except DataError as error:
                failed[work.sha256] = str(error)
        return pictures, failed

    def embed(self, pictures: Mapping[str, Image.Image], failed: dict[str, str]) -> EmbeddedBatch:
        images = list(pictures.values())
        vectors = self._encoder.pictures(images) if images else np.empty((0, self._encoder.dimension), np.float32)
        finite = np.isfinite(vectors.sum(axis=1))
        failed |= {
            digest: "the model gives no finite vector for it"
            for digest, good in zip(pictures, finite, strict=True)
            if not good
        }
        good = [digest for digest in pictures if digest not in failed]
        return EmbeddedBatch(
            good,
            [pictures[digest].size for digest in good],
            [encode_thumbnail(pictures[digest]) for digest in good],
            vectors[finite],
            failed,
        )

    def _content(self, work: Work) -> bytes:
        for file in work.files:
            content = self._place.read(file)
            if hashlib.sha256(content).hexdigest() == work.sha256:
                return content
        raise DataError(CHANGED)


def embed_here(
    encoder: Encoder, source: Mapping[str, Any], batches: Sequence[Sequence[Work]]
) -> Generator[EmbeddedBatch, None, None]:
    """Yield each batch, embedded in this process, while a thread reads the next."""
    embedder = Embedder(encoder, source)
    with Prefetch(lambda number: embedder.read(batches[number]), steps=len(batches)) as read:
        for number in range(len(batches)):
            yield embedder.embed(*read(number))


def embed_with_ray(
    model: Mapping[str, Any], root: Path, source: Mapping[str, Any], batches: Sequence[Sequence[Work]], compute: Compute
) -> Generator[EmbeddedBatch, None, None]:
    """Yield each batch, embedded by one of `compute.workers` processes, in any order.

    The model ({"name", "digest"}) and the source are opened in each process, on any node. Raises what an embedder raises, and
    InfrastructureError where the cluster can hold no process, or processes are lost and Ray cannot replace them.
    """
    with ray_session(compute):
        import ray
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.log_internal_stack_trace_to_stdout = False
        gpus = ray.cluster_resources().get("GPU", 0.0) if wants_gpu(compute) else 0.0
        share = 1 / math.ceil(max(1.0, compute.workers / gpus)) if gpus else 0.0
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        require_bundles(1, compute.threads, math.ceil(share), nodes, "this Ray cluster")
        with DataContext.current(context):
            items = [{"batch": pickle.dumps(list(batch))} for batch in batches]
            done = ray.data.from_items(items, override_num_blocks=min(len(items), 20_000)).map_batches(
                _InWorker,
                fn_constructor_args=(dict(model), str(root), dict(source), compute),
                batch_size=1,
                compute=ActorPoolStrategy(size=compute.workers),
                num_cpus=compute.threads,
                num_gpus=share,
            )
            try:
                for row in done.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=_DONE_AHEAD):
                    yield pickle.loads(row["embedded"][0])
            except ray.exceptions.RayError as error:
                raise _cause(error) from error


class _InWorker:
    """Maps a pickled batch to a pickled `EmbeddedBatch`."""

    def __init__(self, model: Mapping[str, Any], root: str, source: Mapping[str, Any], compute: Compute) -> None:
        import torch

        torch.set_num_threads(compute.threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        device = "cuda" if uses_gpu(compute) else "cpu"
        self._embedder = Embedder(open_encoder(model, Path(root), device=device), source)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        done = self._embedder.embed(*self._embedder.read(pickle.loads(rows["batch"][0])))
        column = np.empty(1, dtype=object)
        column[0] = pickle.dumps(done)
        return {"embedded": column}


def _cause(error: BaseException) -> BaseException:
    """Return the worker's own error, whose text Ray wraps in another; a bug stays as it is, with its traceback."""
    for kind in (DataError, ParameterError, ConnectionError):
        if found := re.findall(rf"^(?:components\.errors\.)?{kind.__name__}: (.+)", str(error), re.MULTILINE):
            return kind(found[-1])
    if type(error).__name__ in ("RayTaskError", "UserCodeException") or "UserCodeException" in str(error):
        return error
    return InfrastructureError(
        f"Ray's workers were lost ({one_line(error)}); what was embedded is kept, run the command again"
    )
