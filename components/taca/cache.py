"""Latents and text embeddings on disk, computed once: training then needs neither the VAE nor the text encoders.

A folder of safetensors shards and one index:

    latents-00000.safetensors  latents, shifted and scaled, one row per picture: (n, S, C) packed (FLUX), (n, C, H, W) (SD3)
    text-00000.safetensors     prompt_embeds (n, T, D), pooled (n, P), text_mask (n, T) bool, those that the model has
    empty.safetensors          the same for the empty prompt, for caption dropout
    index.json                 image_ids, captions, the picture of each caption, the grid of latent tokens, rows per shard

Shards are memory-mapped, so a cache may be larger than memory (FLUX.1-dev: 4 MiB a caption in bfloat16). The same
input gives the same bytes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.errors import DataError
from components.taca.conventions import encode_captions, encode_pictures, image_positions, picture_multiple

INDEX = "index.json"


@dataclass(frozen=True)
class CachedCaption:
    """A caption and the picture it describes."""

    image_id: int
    caption_id: int
    caption: str


def write_cache(
    pipe: Any,
    folder: Path,
    rows: Sequence[CachedCaption],
    pixels: Callable[[Sequence[int]], Tensor],
    *,
    batch_size: int = 32,
    shard_rows: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode the pictures and captions of `rows` into `folder` (created; must not hold a cache already).

    `pixels(image_ids)` returns pictures (n, 3, H, W), all of one size. A picture with several captions is encoded once.
    `progress(done, total)` is called with the number of encoded rows (pictures and captions together).
    """
    if not rows:
        raise DataError("no captions to encode: the dataset has no rows for this split and form")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists():
        raise DataError(f"{folder}: holds a cache already; remove it first")
    image_ids = list(dict.fromkeys(row.image_id for row in rows))
    total = len(image_ids) + len(rows)
    size: list[int] = []

    def latents(start: int, stop: int) -> dict[str, Tensor]:
        pictures = pixels(image_ids[start:stop])
        size[:] = pictures.shape[-2:]
        if progress:
            progress(stop, total)
        return {"latents": encode_pictures(pipe, pictures)}

    def text(start: int, stop: int) -> dict[str, Tensor]:
        encoded = encode_captions(pipe, [row.caption for row in rows[start:stop]])
        if progress:
            progress(len(image_ids) + stop, total)
        return encoded

    _write_shards(folder, "latents", len(image_ids), latents, batch_size, shard_rows)
    _write_shards(folder, "text", len(rows), text, batch_size, shard_rows)
    _save(folder / "empty.safetensors", encode_captions(pipe, [""]))
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    index = {
        "grid": [side // picture_multiple(pipe) for side in size],
        "shard_rows": shard_rows,
        "image_ids": image_ids,
        "captions": [[row_of[row.image_id], row.caption_id, row.caption] for row in rows],
    }
    (folder / INDEX).write_text(json.dumps(index, sort_keys=True, ensure_ascii=False) + "\n")


@dataclass
class LatentCache:
    """A cache on disk, read row by row with `LatentCache.open`. A row is a caption with its picture."""

    folder: Path
    rows: tuple[CachedCaption, ...]
    grid: tuple[int, int]  # latent tokens (down, across)
    shard_rows: int
    _picture_rows: tuple[int, ...]  # of each caption
    _open: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path) -> "LatentCache":
        """Read the index of a cache. Raises `DataError` when there is none."""
        try:
            index = json.loads((folder / INDEX).read_text())
        except FileNotFoundError:
            raise DataError(f"{folder}: no {INDEX}, so no finished cache; run the taca_cache stage") from None
        rows = tuple(CachedCaption(index["image_ids"][picture], *rest) for picture, *rest in index["captions"])
        pictures = tuple(picture for picture, *_ in index["captions"])
        return cls(folder, rows, tuple(index["grid"]), index["shard_rows"], pictures)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a worker opens its own memory maps

    @property
    def tokens(self) -> int:
        """The number of image tokens that the transformer sees; a threshold is transferred by it."""
        return self.grid[0] * self.grid[1]

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Rows as a batch for `VelocityTask`.

        Returns `{"latents": (B, S, C), "img_ids": (S, 3)}` for packed latents or `{"latents": (B, C, H, W)}`, with
        "prompt_embeds" (B, T, D), and "pooled" (B, P) and "text_mask" (B, T) as far as the model has them. Text has no
        positions of its own: FLUX's are zeros, which the task makes itself.
        """
        chosen = [int(index) for index in indices]
        batch = {
            "latents": torch.stack([self._row("latents", "latents", self._picture_rows[index]) for index in chosen])
        }
        if batch["latents"].ndim == 3:
            batch["img_ids"] = image_positions(*self.grid)
        for name in self._file("empty").keys():  # noqa: SIM118 (a safetensors file is not a mapping)
            batch[name] = torch.stack([self._row("text", name, index) for index in chosen])
        return batch

    def null_caption(self) -> dict[str, Tensor]:
        """What a dropped caption becomes, as `VelocityTask` takes it: null_prompt_embeds (T, D), null_pooled (P,),
        null_text_mask (T,), as far as the model has them."""
        empty = self._file("empty")
        return {f"null_{name}": empty.get_tensor(name)[0] for name in empty.keys()}  # noqa: SIM118

    def _row(self, part: str, name: str, row: int) -> Tensor:
        shard, place = divmod(row, self.shard_rows)
        return self._file(f"{part}-{shard:05d}").get_slice(name)[place]

    def _file(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if name not in self._open:
            path = self.folder / f"{name}.safetensors"
            try:
                self._open[name] = safe_open(path, framework="pt")
            except (FileNotFoundError, SafetensorError) as error:
                raise DataError(f"{path}: cannot be read ({error}); run the taca_cache stage again") from None
        return self._open[name]


def _write_shards(
    folder: Path,
    name: str,
    count: int,
    encode: Callable[[int, int], dict[str, Tensor]],
    batch_size: int,
    shard_rows: int,
) -> None:
    """Fill `<name>-<shard>.safetensors` with `shard_rows` rows each, encoded in batches that do not cross shards."""
    for shard, first in enumerate(range(0, count, shard_rows)):
        last = min(first + shard_rows, count)
        parts = [encode(start, min(start + batch_size, last)) for start in range(first, last, batch_size)]
        columns = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        _save(folder / f"{name}-{shard:05d}.safetensors", columns)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
