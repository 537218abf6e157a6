"""GPU memory of drawing a picture, computed from the architecture: nothing is loaded and no GPU is needed.

With the bytes W_p of a part's weights, and A_p of its activations:

    offload none     sum of W_p + largest A_p
    offload model    largest W_p + A_p                            one part at a time
    offload group    2 x largest layer + largest A_p              one layer computes while the next one arrives

Weights are in bfloat16, or as quantised: those of linear layers, in the parts and at the bits that `quantization.py` states.

A_p is of one picture. That of the VAE is counted: its decoder runs on tensors without memory, and the most bytes alive at a
time are taken. That of the transformer is an estimate, `VALUES_PER_TOKEN` values of its width for every token. Text encoders
read at most some hundred tokens, which is little beside the others, and is not in it; nor are the CUDA context, a LoRA, and
what kernels need beside their results. `footprint.MARGIN` is reserved for those.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from components.errors import ParameterError
from components.taca.memory_options import Offload

BITS = {"bf16": 16.0, "int8": 8.0, "nf4": 4.5, "Q4_K": 4.5}
"""Of a weight of a quantised linear layer, scales of blocks included (of channels left out: a thousandth)."""

VALUES_PER_TOKEN = 24
"""The stream, its normalised copy, query, key and value, the attention's result and the hidden layer, in and out of its
activation."""


@dataclass(frozen=True)
class PartSize:
    """Weights of a part. linear: the number in linear layers, which quantisation packs. other: the number of the rest, in bfloat16.
    linear_layer, other_layer: of the largest layer of each. quantised: whether it is one of the parts that are quantised."""

    linear: int
    other: int
    linear_layer: int
    other_layer: int
    quantised: bool

    @property
    def parameters(self) -> int:
        return self.linear + self.other

    def bytes(self, kind: str) -> int:
        """Return the bytes of all weights. kind: a key of BITS."""
        return int(self.linear * self._bits(kind) / 8) + 2 * self.other

    def layer_bytes(self, kind: str) -> int:
        """Return the bytes of the largest layer."""
        return max(int(self.linear_layer * self._bits(kind) / 8), 2 * self.other_layer)

    def _bits(self, kind: str) -> float:
        return BITS[kind] if self.quantised else BITS["bf16"]


def part_size(model: nn.Module, *, quantised: bool) -> PartSize:
    """Measure a model, which may be on the meta device. Weights that are tied count once, and the output layer of a language model,
    which is not quantised, not among linear layers."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not output}
    others = {id(p): p.numel() for p in model.parameters() if id(p) not in linear}
    packed, rest = linear.values(), others.values()
    return PartSize(sum(packed), sum(rest), max(packed, default=0), max(rest, default=0), quantised)


def skeleton_part(config: Mapping[str, Any]) -> nn.Module:
    """Build a VAE or a text encoder on the meta device, without weights. config: `_class_name`, of diffusers or transformers,
    and what its config has other than the defaults of that class. Raises `ParameterError` for a class that neither has."""
    import diffusers
    import transformers

    values = dict(config)
    name = str(values.pop("_class_name", None))
    with torch.device("meta"):
        if kind := getattr(diffusers, name, None):
            model: nn.Module = kind.from_config(values)
        elif kind := getattr(transformers, name, None):
            model = kind(kind.config_class(**values))
        else:
            raise ParameterError(f"architecture: _class_name {name!r} is neither of diffusers nor of transformers")
    return nn.Module.to(model, torch.bfloat16)


def decoding_bytes(vae: Any, latent: tuple[int, int]) -> int:
    """Count the most bytes alive at a time while a VAE on the meta device decodes one picture. latent: height and width."""
    config = vae.config
    video = "z_dim" in config  # Qwen-Image's, of one frame
    channels = config.z_dim if video else config.latent_channels
    latents = torch.empty(1, channels, *([1] if video else []), *latent, device="meta", dtype=torch.bfloat16)
    peak = _Peak()
    with torch.no_grad(), _AttentionWithoutScores(), peak:
        vae.decode(latents)
    return peak.bytes


def forward_bytes(config: Mapping[str, Any], tokens: int) -> int:
    """Estimate the activations of one forward of a transformer, for one picture of so many tokens, text included."""
    heads = config.get("num_attention_heads")
    width = config["dim"] if heads is None else heads * config["attention_head_dim"]
    return 2 * VALUES_PER_TOKEN * int(width) * tokens


@dataclass(frozen=True)
class DrawingMemory:
    """The parts of a pipeline by name, and the bytes of activations of the transformer and the VAE."""

    parts: Mapping[str, PartSize]
    forward: int
    decoding: int

    def bytes(self, offload: Offload, kinds: Mapping[str, str]) -> int:
        """Return the bytes on the GPU for one picture. kinds: a key of BITS for each part, "bf16" where there is none."""
        kind = {name: kinds.get(name, "bf16") for name in self.parts}
        active = {"transformer": self.forward, "vae": self.decoding}
        if offload == "group":
            layer = max(part.layer_bytes(kind[name]) for name, part in self.parts.items())
            return 2 * layer + max(active.values())
        weights = {name: part.bytes(kind[name]) for name, part in self.parts.items()}
        if offload == "model":
            return max(size + active.get(name, 0) for name, size in weights.items())
        return sum(weights.values()) + max(active.values())


class _Peak(TorchDispatchMode):
    """Adds up the bytes of storages made inside and not yet freed."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[Any, int]] = {}
        self._now = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        self.bytes = max(self.bytes, self._now)
        return out

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            self._now -= self._alive.pop(key)[1]

        self._alive[key] = weakref.ref(storage, freed), storage.nbytes()
        self._now += storage.nbytes()


class _AttentionWithoutScores(TorchFunctionMode):
    """Replaces attention by a tensor of its shape: a GPU's kernels keep no table of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query: Tensor = args[0] if args else (kwargs or {})["query"]
            return torch.empty_like(query)
        return func(*args, **(kwargs or {}))
