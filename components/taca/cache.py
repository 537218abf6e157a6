"""Latents and text embeddings, computed once: training then needs neither the VAE nor the text encoders.

A folder of safetensors shards and one index:

    latents-00000.safetensors  latents (n, S, C): packed, shifted and scaled, one row a picture
    text-00000.safetensors     prompt_embeds (n, T, D), pooled (n, P): one row a caption
    empty.safetensors          the same for the empty prompt, for caption dropout
    index.json                 image_ids, captions, the picture of each caption, the grid of latent tokens, rows a shard

Shards are memory-mapped, so a cache may be larger than memory (FLUX.1-dev: 4 MiB a caption in bfloat16). Every file is
the same byte for byte when written again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components.errors import DataError
from components.taca.autoencoder import signed_pixels

if TYPE_CHECKING:
    from diffusers import FluxPipeline

INDEX = "index.json"


@dataclass(frozen=True)
class CaptionRow:
    """A caption and the picture it describes."""

    image_id: int
    caption_id: int
    caption: str


@torch.no_grad()
def encode_pictures(pipe: "FluxPipeline", pixels: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), uint8 or float in [0, 1], as packed latents (B, S, C) of the VAE's dtype: (z - shift) *
    scale.

    The posterior mean is taken, so the result is a function of the picture. S = (H / 2f) (W / 2f) for a VAE of scale f.
    Raises `DataError` for a size that the packing does not divide.
    """
    vae = pipe.vae
    height, width = pixels.shape[-2:]
    multiple = 2 * pipe.vae_scale_factor
    if height % multiple or width % multiple:
        raise DataError(f"pictures of {height}x{width}: both sides must be multiples of {multiple} for this model")
    mean = vae.encode(signed_pixels(pixels.to(vae.device)).to(vae.dtype)).latent_dist.mean  # (B, C/4, H/f, W/f)
    scaled = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    batch, channels, rows, columns = scaled.shape
    return pipe._pack_latents(scaled, batch, channels, rows, columns)


@torch.no_grad()
def encode_captions(pipe: "FluxPipeline", captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Captions as (prompt_embeds (N, T, D), pooled (N, P)), through the pipeline's own `encode_prompt`."""
    embeds, pooled, _ = pipe.encode_prompt(list(captions), max_sequence_length=text_length(pipe))
    return embeds, pooled


def text_length(pipe: "FluxPipeline") -> int:
    """Text tokens to run the pipeline with: its T5 tokenizer's own length, 512 at most as `FluxPipeline` demands."""
    return min(512, pipe.tokenizer_2.model_max_length)


def write_cache(
    pipe: "FluxPipeline",
    folder: Path,
    rows: Sequence[CaptionRow],
    pixels: Callable[[Sequence[int]], Tensor],
    *,
    batch_size: int = 32,
    shard_rows: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode the pictures and captions of `rows` into `folder` (created; must not hold a cache already).

    `pixels(image_ids)` gives pictures (n, 3, H, W), all of one size. A picture with several captions is encoded once.
    `progress(done, total)` is told of encoded rows (pictures and captions together).
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
        embeds, pooled = encode_captions(pipe, [row.caption for row in rows[start:stop]])
        if progress:
            progress(len(image_ids) + stop, total)
        return {"prompt_embeds": embeds, "pooled": pooled}

    _write_shards(folder, "latents", len(image_ids), latents, batch_size, shard_rows)
    _write_shards(folder, "text", len(rows), text, batch_size, shard_rows)
    embeds, pooled = encode_captions(pipe, [""])
    _save(folder / "empty.safetensors", {"prompt_embeds": embeds, "pooled": pooled})
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    index = {
        "grid": [side // (2 * pipe.vae_scale_factor) for side in size],
        "shard_rows": shard_rows,
        "image_ids": image_ids,
        "captions": [[row_of[row.image_id], row.caption_id, row.caption] for row in rows],
    }
    (folder / INDEX).write_text(json.dumps(index, sort_keys=True, ensure_ascii=False) + "\n")


@dataclass
class LatentCache:
    """A cache on disk, read row by row. A row is a caption with its picture. Use `LatentCache.open`."""

    folder: Path
    rows: tuple[CaptionRow, ...]
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
        rows = tuple(CaptionRow(index["image_ids"][picture], *rest) for picture, *rest in index["captions"])
        pictures = tuple(picture for picture, *_ in index["captions"])
        return cls(folder, rows, tuple(index["grid"]), index["shard_rows"], pictures)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # memory maps stay behind when the cache travels to a worker

    @property
    def img_ids(self) -> Tensor:
        """Positions of the latent tokens for rotary embedding: (S, 3) float32 of (0, row, column)."""
        down, across = self.grid
        ids = torch.zeros(down, across, 3)
        ids[..., 1] = torch.arange(down)[:, None]
        ids[..., 2] = torch.arange(across)[None, :]
        return ids.reshape(-1, 3)

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Rows as a batch for `VelocityTask`.

        Returns `{"latents": (B, S, C), "img_ids": (S, 3), "prompt_embeds": (B, T, D), "pooled": (B, P)}`. FLUX's text
        positions are zeros, which the task makes itself.
        """
        chosen = [int(index) for index in indices]
        return {
            "latents": torch.stack([self._row("latents", "latents", self._picture_rows[index]) for index in chosen]),
            "img_ids": self.img_ids,
            "prompt_embeds": torch.stack([self._row("text", "prompt_embeds", index) for index in chosen]),
            "pooled": torch.stack([self._row("text", "pooled", index) for index in chosen]),
        }

    def empty_prompt(self) -> tuple[Tensor, Tensor]:
        """The empty prompt as (prompt_embeds (T, D), pooled (P,)): what a dropped caption becomes."""
        return self._file("empty").get_tensor("prompt_embeds")[0], self._file("empty").get_tensor("pooled")[0]

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
