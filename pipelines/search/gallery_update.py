"""Makes a gallery out of a source of pictures, or brings one up to date.

The pictures of the source are told apart by their bytes. Those of the version that answers, and those that a killed update has
embedded, are not embedded again; then a new version is written and answers. A kill at any moment leaves the former version.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.errors import DataError, ParameterError
from components.files import write_atomically
from components.search.encoders import Encoder, open_encoder
from components.search.gallery import layout
from components.search.gallery.merging import Digest, Picture, digests, merged, table_of
from components.search.gallery.places import is_address, open_place
from components.search.gallery.reading import Gallery
from components.search.gallery.removal import BuildIndex, purge, sweep_thumbnails
from components.search.gallery.sources import find_source, list_source
from components.search.gallery.thumbnails import write_thumbnail
from components.search.gallery.tombstones import tombstones
from components.search.gallery.unfinished import Embedded, Unfinished
from components.search.gallery.writing import read_left_out, remove_versions, switch, write_version
from components.search.model_reference import PIPELINE
from pipelines.schema.running import Compute
from pipelines.search.embedding import EmbeddedBatch, Work, embed_here, embed_with_ray
from pipelines.search.gallery_folder import held, last_request, require_gallery_or_room
from pipelines.search.gallery_report import progress, report
from pipelines.search.options import GalleryOptions
from pipelines.threads.cores import usable_cores
from pipelines.workspace import Workspace

SHARD = 1024
"""Pictures whose vectors are stored together; an update that is killed has to embed at most as many again."""
STORE_SECONDS = 30.0
"""After which fewer are stored: a large model takes seconds for one."""
_BLOCK = 8192


def update_gallery(options: GalleryOptions, workspace: Workspace) -> str:
    """Make or update a gallery, print what was done, and return the name of the version that answers.

    Raises ParameterError for a folder that is none, DataError for a source without a readable picture, InfrastructureError while
    another process updates the gallery, or where the disk is full.
    """
    gallery = options.gallery
    require_gallery_or_room(gallery)
    known = last_request(gallery)
    if options.source is None and not known:
        raise ParameterError(f"{gallery}: is a new gallery: give the SOURCE of its pictures")
    update = _Update(options, workspace, known)  # a source that is none leaves no folder
    with held(gallery):
        return update.run()


@dataclass(frozen=True)
class _Reusable:
    """The version that answers, with the rows whose vectors can be used again."""

    gallery: Gallery
    rows: Mapping[str, int]
    sizes: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, gallery: Gallery) -> "_Reusable":
        digests, widths, heights = (gallery.table[name].to_pylist() for name in ("sha256", "width", "height"))
        rows = {digest: row for row, digest in enumerate(digests)}
        return cls(gallery, rows, dict(zip(digests, zip(widths, heights, strict=True), strict=True)))


class _Update:
    """One update, by the process that holds the gallery's lock."""

    def __init__(self, options: GalleryOptions, workspace: Workspace, known: Mapping[str, Any]) -> None:
        self.options, self.workspace, self.gallery = options, workspace, options.gallery
        self.model = options.model or str(known.get("model", PIPELINE))
        if options.source is None:
            self.source: Mapping[str, Any] = known["source"]
        else:
            self.source = find_source(options.source, options.format, Path.cwd(), options.columns)
        _require_outside(self.gallery, str(self.source["location"]))
        before = known.get("settings", {})
        half, approximate = options.half, options.approximate
        self.settings = {
            "half": before.get("half", False) if half is None else half,
            "approximate": before.get("approximate", False) if approximate is None else approximate,
        }
        threads = options.threads or max(1, usable_cores() // max(1, options.workers))
        self.compute = Compute(workers=options.workers, threads=threads, device=options.device)

    def run(self) -> str:
        listing, left_out = list_source(self.source)
        encoder = self._open_encoder()
        remembered = {"source": self.source, "model": encoder.name, "settings": self.settings}
        write_atomically(self.gallery / layout.SOURCE, json.dumps(remembered, indent=1, sort_keys=True) + "\n")
        purge(self.gallery, index_builder(lambda: encoder))  # where a forgetting was killed
        found = self._digests(listing)
        forgotten = tombstones(self.gallery)
        pictures, unreadable = merged(listing, found, forgotten)
        excluded = sum(not isinstance(digest, str) and digest[0] in forgotten for digest in found.values())
        old, unfinished = self._reusable(encoder), self._unfinished(encoder)
        rows = old.rows if old else {}
        todo = [each for each in pictures if each.sha256 not in rows and each.sha256 not in unfinished]
        failed = self._embed(todo, encoder, unfinished) if todo else {}
        kept = [each for each in pictures if each.sha256 not in failed]
        left_out += unreadable
        left_out += [(file, failed[each.sha256]) for each in pictures if each.sha256 in failed for file in each.files]
        if not kept and not excluded:
            file, reason = left_out[0]
            raise DataError(
                f"{self.source['location']}: none of {len(left_out):,} files is a readable picture; {file}: {reason}"
            )
        sizes = {**unfinished.sizes, **(old.sizes if old else {})}
        name = self._finish(table_of(kept, sizes, listing), old, unfinished, encoder, left_out)
        embedded = len(todo) - len(failed)
        report(
            self.gallery,
            name,
            kept,
            embedded,
            left_out,
            excluded,
            removed=len(rows.keys() - {each.sha256 for each in kept}),
        )
        return name

    def _open_encoder(self) -> Encoder:
        """The model, here; workers open it themselves, perhaps on GPUs that this machine does not have."""
        import torch

        if self.compute.workers == 0:
            if self.compute.device == "cuda" and not torch.cuda.is_available():
                raise ParameterError(
                    "--device cuda: PyTorch finds no GPU here; give --device auto, or workers on a cluster"
                )
            torch.set_num_threads(self.compute.threads)
        on_gpu = self.compute.device != "cpu" and torch.cuda.is_available()
        return open_encoder(self.model, self.workspace.root, device="cuda" if on_gpu else "cpu")

    def _digests(self, listing: pa.Table) -> dict[str, Digest]:
        files = list(dict.fromkeys(listing["file"].to_pylist()))
        with progress("reading", len(files)) as advance:
            return dict(zip(files, digests(open_place(self.source), files, advance), strict=True))

    def _reusable(self, encoder: Encoder) -> _Reusable | None:
        """The version that answers, if its vectors can be used again; else say why every picture is embedded anew."""
        if not (self.gallery / layout.CURRENT).exists():
            return None
        old = Gallery.open(self.gallery)
        if old.model["digest"] != encoder.digest:
            changed = "has changed" if old.model["name"] == encoder.name else f"is another than {old.model['name']}"
            print(f"the model {encoder.name} {changed}: every picture is embedded anew, in a new version")
            return None
        if old.vectors.dtype == np.float16 and not self.settings["half"]:
            print("vectors of half precision cannot become full ones: every picture is embedded anew, in a new version")
            return None
        return _Reusable.of(old)

    def _unfinished(self, encoder: Encoder) -> Unfinished:
        """What a killed update has embedded with this model."""
        unfinished = Unfinished(self.gallery)
        if not unfinished.belongs_to(encoder.digest):
            print(f"{len(unfinished):,} pictures that an unfinished update embedded with another model are dropped")
            unfinished.discard()
        elif len(unfinished):
            print(f"going on from an unfinished update: {len(unfinished):,} pictures are embedded already")
        unfinished.begin(encoder.digest)
        return unfinished

    def _embed(self, todo: Sequence[Picture], encoder: Encoder, unfinished: Unfinished) -> dict[str, str]:
        """Embed pictures into `unfinished`, and write their thumbnails. Return the reasons of those that failed, by digest."""
        size = self.options.batch
        works = [Work(each.sha256, tuple(each.files)) for each in todo]
        batches = [works[begin : begin + size] for begin in range(0, len(works), size)]
        done: Generator[EmbeddedBatch, None, None]
        if self.compute.workers:
            model = {"name": encoder.name, "digest": encoder.digest}
            done = embed_with_ray(model, self.workspace.root, self.source, batches, self.compute)
        else:
            done = embed_here(encoder, self.source, batches)
        identities = {each.sha256: each.identities for each in todo}
        failed: dict[str, str] = {}
        waiting: list[EmbeddedBatch] = []
        stored = time.monotonic()
        with progress("embedding", len(todo)) as advance, closing(done):
            try:
                for batch in done:
                    for digest, thumbnail in zip(batch.digests, batch.thumbnails, strict=True):
                        write_thumbnail(self.gallery, layout.picture_id(digest), thumbnail)
                    failed |= batch.failed
                    waiting.append(batch)
                    advance(len(batch.digests) + len(batch.failed))
                    late = time.monotonic() - stored > STORE_SECONDS
                    if late or sum(len(each.digests) for each in waiting) >= SHARD:
                        _store(waiting, identities, unfinished)
                        stored = time.monotonic()
            finally:  # also of an interrupted update
                _store(waiting, identities, unfinished)
        return failed

    def _finish(
        self,
        table: pa.Table,
        old: _Reusable | None,
        unfinished: Unfinished,
        encoder: Encoder,
        left_out: Sequence[tuple[str, str]],
    ) -> str:
        """Write the version and let it answer, unless it would equal the one that does. Return the name of the one that answers."""
        if old and self._equals(old.gallery, table, left_out):
            name = old.gallery.version
        else:
            name = write_version(
                self.gallery,
                _blocks(table["sha256"].to_pylist(), old, unfinished),
                table,
                dimension=encoder.dimension,
                dtype=self._dtype,
                model={"name": encoder.name, "digest": encoder.digest},
                settings=self.settings,
                source=self.source,
                left_out=left_out,
                build_index=index_builder(lambda: encoder) if self.settings["approximate"] else None,
            )
            switch(self.gallery, name)
        unfinished.discard()
        remove_versions(self.gallery)
        sweep_thumbnails(self.gallery)
        return name

    @property
    def _dtype(self) -> str:
        return "float16" if self.settings["half"] else "float32"

    def _equals(self, old: Gallery, table: pa.Table, left_out: Sequence[tuple[str, str]]) -> bool:
        same = (old.settings, old.source, str(old.vectors.dtype)) == (self.settings, self.source, self._dtype)
        return same and old.table.equals(table) and read_left_out(old.folder) == list(left_out)


def index_builder(encoder: Callable[[], Encoder | None]) -> BuildIndex:
    """Return the function that writes the approximate index of a version; without an encoder, measured with pictures alone."""

    def build_index(path: Path, vectors: np.ndarray) -> Mapping[str, Any]:
        from components.search.approximate import MIN_SIZE, SAMPLE_SENTENCES, build

        found = encoder() if len(vectors) >= MIN_SIZE else None
        return build(path, vectors, found.sentences(SAMPLE_SENTENCES) if found else None)

    return build_index


def _require_outside(gallery: Path, location: str) -> None:
    """Refuse a source within the gallery; the gallery may be within the source."""
    if not is_address(location) and Path(location).resolve().is_relative_to(gallery.resolve()):
        raise ParameterError(f"{location}: is in the gallery itself; give the folder of your pictures")


def _store(waiting: list[EmbeddedBatch], identities: Mapping[str, Sequence[str]], unfinished: Unfinished) -> None:
    """Move what is waiting to the disk."""
    names = [digest for batch in waiting for digest in batch.digests]
    if names:
        sizes = [size for batch in waiting for size in batch.sizes]
        vectors = np.concatenate([batch.vectors for batch in waiting])
        unfinished.add(Embedded(names, sizes, [identities[name] for name in names], vectors))
    waiting.clear()


def _blocks(names: Sequence[str], old: _Reusable | None, unfinished: Unfinished) -> Iterator[np.ndarray]:
    """Yield the vectors of these pictures, in order, from the former version and from what was embedded since."""
    rows = old.rows if old else {}
    for begin in range(0, len(names), _BLOCK):
        block = names[begin : begin + _BLOCK]
        known = [place for place, name in enumerate(block) if name in rows]
        new = [place for place, name in enumerate(block) if name not in rows]
        if not new and old:
            yield old.gallery.vectors[[rows[name] for name in block]]
            continue
        fresh = unfinished.vectors([block[place] for place in new])
        vectors = np.empty((len(block), fresh.shape[1]), np.float32)
        vectors[new] = fresh
        if old and known:
            vectors[known] = old.gallery.vectors[[rows[block[place]] for place in known]]
        yield vectors
