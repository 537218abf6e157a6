"""Weights that others have published, on our model, with every key of their files accounted for.

Three forms are read: checkpoints as IRRA writes them and GA-DMS with it (`{"model": ...}`: `base_model.*` is CLIP under OpenAI's
names, which are open_clip's; beside it `cross_attn`, `cross_modal_transformer`, `ln_pre_t`, `ln_pre_i`, `ln_post` and `mlm_head`,
the masked-token decoder, and `classifier`), a CLIP's plain state dict, and folders that `DualEncoder.save` wrote. Files are read
as tensors only, never as code; half precision becomes float32.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.gadms.decoder import CrossModalDecoder
from components.gadms.model import WEIGHTS_FILE, DualEncoder, PositionResize, resize_positions

TOWERS = "base_model."
_POSITIONS = "visual.positional_embedding"
_DECODER = {
    "cross_attn.": "cross_attention.",
    "ln_pre_t.": "text_norm.",
    "ln_pre_i.": "image_norm.",
    "ln_post.": "final_norm.",
    "mlm_head.dense.": "head.0.",
    "mlm_head.ln.": "head.2.",
    "mlm_head.fc.": "vocabulary.",
}
_BLOCK = re.compile(r"cross_modal_transformer\.resblocks\.(\d+)\.(attn|ln_1|ln_2|mlp\.c_fc|mlp\.c_proj)\.(.+)")
_IN_BLOCK = {"attn": "self_attn", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
_DROPPED = {
    "classifier.weight": "one row an identity of the set it was trained on",
    "classifier.bias": "one number an identity of the set it was trained on",
    "input_resolution": "a number that OpenAI's files carry",
    "context_length": "a number that OpenAI's files carry",
    "vocab_size": "a number that OpenAI's files carry",
}
_NOT_PUBLISHED = {"logit_scale"}  # IRRA's temperature is a constant; ours is not trained either


@dataclass(frozen=True)
class Published:
    """A file's tensors by the names that our modules give them; `dropped` are the file's other keys, each with why."""

    file: Path
    towers: Mapping[str, Tensor]
    decoder: Mapping[str, Tensor]
    dropped: Mapping[str, str]

    def encoder(
        self,
        architecture: Mapping[str, Any] | str,
        *,
        image_size: tuple[int, int] | None = None,
        position_resize: PositionResize = "bilinear",
    ) -> DualEncoder:
        """The towers, on a model of `architecture`. Raises DataError when they are those of another one."""
        model = DualEncoder.create(architecture, image_size=image_size)
        state = dict(self.towers)
        if _POSITIONS in state:
            grid = model.clip.visual.grid_size
            resize_positions(state, self._grid(len(state[_POSITIONS]) - 1, grid), grid, position_resize)
        self._fill(model.clip, state, "retrieval.architecture", optional=_NOT_PUBLISHED)
        return model

    def masked_token_decoder(self) -> CrossModalDecoder | None:
        """The decoder, of the depth and vocabulary that the file has; None for a file without one."""
        if not self.decoder:
            return None
        depth = len({name.split(".")[1] for name in self.decoder if name.startswith("blocks.")})
        vocabulary, width = self._of_decoder("vocabulary.weight").shape
        decoder = CrossModalDecoder(width, vocabulary, depth=depth)
        self._fill(decoder, self.decoder, "the decoder")
        return decoder

    def _of_decoder(self, name: str) -> Tensor:
        if name not in self.decoder:
            raise DataError(f"{self.file}: its decoder has no {name}; the file is not whole")
        return self.decoder[name]

    def _grid(self, patches: int, ours: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the position embedding: ours, a square, or the 3:1 of person retrieval (384 x 128)."""
        if patches == ours[0] * ours[1]:
            return ours
        if isqrt(patches) ** 2 == patches:
            return isqrt(patches), isqrt(patches)
        columns = isqrt(patches // 3)
        if 3 * columns**2 == patches:
            return 3 * columns, columns
        raise DataError(f"{self.file}: {patches} patches are neither a square nor 3:1; give its own image_size")

    def _fill(
        self,
        module: nn.Module,
        state: Mapping[str, Tensor],
        whose: str,
        optional: frozenset[str] | set[str] = frozenset(),
    ) -> None:
        """Load `state`; one line names what does not fit."""
        own = module.state_dict()
        wrong = [f"{name} is missing" for name in own if name not in state and name not in optional]
        wrong += [f"{name} is not a part of it" for name in state if name not in own]
        wrong += [
            f"{name} is {list(tensor.shape)}, not {list(own[name].shape)}"
            for name, tensor in state.items()
            if name in own and tensor.shape != own[name].shape
        ]
        if wrong:
            raise DataError(f"{self.file}: does not fit {whose}: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
        module.load_state_dict(dict(state), strict=False)


def read_published(file: Path) -> Published:
    """Read a file of weights. Raises DataError for one that is not of a form above, or that has a key we do not know."""
    return account_for(_tensors(file), file)


def account_for(state: Mapping[str, Tensor], file: Path) -> Published:
    """Sort the keys of a state dict, which came from `file`, into used and dropped. Raises DataError for one of neither."""
    towers: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    unknown = []
    irra = any(name.startswith(TOWERS) for name in state)
    for name, tensor in state.items():
        ours = _decoder_name(name) if irra else None
        if name in _DROPPED:
            dropped[name] = _DROPPED[name]
        elif ours is not None:
            decoder[ours] = tensor.float()
        elif name.startswith(TOWERS) or not irra:
            towers[name.removeprefix(TOWERS)] = tensor.float()
        else:
            unknown.append(name)
    if unknown:
        shown = ", ".join(unknown[:5])
        raise DataError(f"{file}: {len(unknown)} keys are of no model that is known here: {shown}")
    return Published(file, towers, decoder, dropped)


def _decoder_name(name: str) -> str | None:
    """Our name of a decoder's key, None for another."""
    block = _BLOCK.fullmatch(name)
    if block:
        return f"blocks.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"
    return next(
        (ours + name.removeprefix(theirs) for theirs, ours in _DECODER.items() if name.startswith(theirs)), None
    )


def _tensors(file: Path) -> Mapping[str, Tensor]:
    """The state dict in a file, without the wrapping of a checkpoint or of DistributedDataParallel."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{file}: not a file of weights ({str(error).splitlines()[0]})") from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise DataError(f'{file}: holds no state dict, neither as it is nor under "model" or "state_dict"')
    wrapped = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in content.items()}


def pretrained_encoder(
    architecture: Mapping[str, Any] | str,
    pretrained: str,
    *,
    root: Path,
    sha256: str | None,
    image_size: tuple[int, int],
    position_resize: PositionResize = "bilinear",
) -> DualEncoder:
    """The encoder that `pretrained` names: a tag of open_clip for `architecture`, or a file or model folder below `root`.

    A folder brings its own architecture. What is not a tag is pinned: its digest must be `sha256`, as a result could not say
    otherwise what it depended on. Raises ParameterError or DataError with what to do.
    """
    import open_clip

    place = root / pretrained
    if isinstance(architecture, str) and open_clip.get_pretrained_cfg(architecture, pretrained):
        return DualEncoder.from_pretrained(
            architecture, pretrained, image_size=image_size, position_resize=position_resize
        )
    if place.is_dir():
        _require_pinned(place / WEIGHTS_FILE, pretrained, sha256)
        return DualEncoder.load(place, image_size=image_size, position_resize=position_resize)
    if place.is_file():
        _require_pinned(place, pretrained, sha256)
        published = read_published(place)
        return published.encoder(architecture, image_size=image_size, position_resize=position_resize)
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) if isinstance(architecture, str) else ""
    raise DataError(
        f"pretrained = {pretrained}: no file or folder, nor a tag of the architecture ({tags or 'it has none'})"
    )


def _require_pinned(file: Path, pretrained: str, sha256: str | None) -> None:
    if not file.is_file():
        raise DataError(f"{file.parent}: not a model folder, {file.name} is missing")
    found = file_digest(file)
    if sha256 is None:
        raise ParameterError(f"pretrained_sha256 is null: set it to {found}, the digest of {pretrained}")
    if sha256 != found:
        raise DataError(f"{pretrained}: its SHA-256 is {found}, and pretrained_sha256 says {sha256}")
