"""Read LoRA files through the reader of diffusers' own pipeline, and find out what it left out.

diffusers drops keys that it does not know, mostly without an error. Here each tensor of the file carries its key through the
conversion, so that a key of which nothing comes out is noticed.
"""

from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor


class _Traced(Tensor):
    """A tensor that knows the keys of the file that it was computed from."""

    keys: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils._pytree import tree_leaves

        result = super().__torch_function__(func, types, args, kwargs or {})
        given = [leaf.keys for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, _Traced)]
        for leaf in tree_leaves(result):
            if isinstance(leaf, _Traced):
                leaf.keys = leaf.keys.union(*given)
        return result


def read_by_diffusers(
    stored: Mapping[str, Tensor], reader: str | None, layers: Container[str]
) -> dict[str, Tensor] | None:
    """Convert a whole file to `<module>.lora_A.weight`, `.lora_B.weight` and `.lora_B.bias`.

    reader: a class of `diffusers.loaders.lora_pipeline`. layers: those of the transformer. None if the reader does not know the
    layout, a layer does not exist, or a key is left out that is not zero.
    """
    from diffusers.loaders import lora_pipeline
    from diffusers.utils import convert_unet_state_dict_to_peft

    if reader is None:
        return None
    traced: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        traced[key] = tensor.as_subclass(_Traced)
        traced[key].keys = frozenset([key])  # type: ignore[attr-defined]
    try:
        found = getattr(lora_pipeline, reader).lora_state_dict(traced)
        found = {key.removeprefix("transformer."): tensor for key, tensor in found.items()}
        if not any("lora_A" in key for key in found):  # the names before PEFT, which diffusers converts while loading
            found = convert_unet_state_dict_to_peft(found)
    except (ValueError, AssertionError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError):
        return None
    used = frozenset().union(*(tensor.keys for tensor in found.values() if isinstance(tensor, _Traced)))
    if any(stored[key].any() for key in stored.keys() - used) or any(
        key.rsplit(".lora_", 1)[0] not in layers for key in found
    ):
        return None
    return {key: tensor.as_subclass(Tensor) for key, tensor in found.items()}
