"""Read LoRA files through the reader of diffusers' own pipeline, and find out what it left out.

diffusers drops keys that it does not know, mostly without an error. Here each tensor of the file carries its key through the
conversion, so that a key of which nothing comes out is noticed.
"""

from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor

# What a reader raises for keys that are not in one of its layouts. Those of SD3 and AuraFlow rename nothing and raise nothing.
_NOT_ITS_LAYOUT: dict[str, tuple[type[Exception], ...]] = {
    # ValueError: keys are left over, or a block's number is no number. KeyError: a key that belongs to another is missing.
    # AssertionError, RuntimeError: a fused layer has other rows than its parts, an alpha is not one number, or a layer of
    # `lora_transformer_` is unknown (NotImplementedError). AttributeError: a block of XLabs' has no number.
    "FluxLoraLoaderMixin": (ValueError, KeyError, AssertionError, RuntimeError, AttributeError),
    # ValueError: keys are left over, or half of a pair is missing. KeyError: as above. RuntimeError: an alpha is not one number.
    "QwenImageLoraLoaderMixin": (ValueError, KeyError, RuntimeError),
}
_OF_OTHERS = (ValueError, KeyError)


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


def loader_of(reader: str | None) -> Any:
    """Return the class of `diffusers.loaders.lora_pipeline`; None without a name."""
    from diffusers.loaders import lora_pipeline

    return getattr(lora_pipeline, reader) if reader else None


def read_by_diffusers(
    stored: Mapping[str, Tensor], reader: str | None, places: Container[str]
) -> dict[str, Tensor] | None:
    """Convert a whole file to `<module>.lora_A.weight`, `.lora_B.weight` and `.lora_B.bias`, and `<norm>.weight` of control LoRAs.

    reader: a class of `diffusers.loaders.lora_pipeline`. places: the linear layers of the transformer, and the names of norms that
    the reader replaces. None if the reader does not know the layout, a place does not exist, or a key is left out that is not zero.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft

    if reader is None:
        return None
    traced: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        traced[key] = tensor.as_subclass(_Traced)
        traced[key].keys = frozenset([key])  # type: ignore[attr-defined]
    try:
        found = loader_of(reader).lora_state_dict(traced)
        found = {key.removeprefix("transformer."): tensor for key, tensor in found.items()}
        if not any("lora_A" in key for key in found):  # the names before PEFT, which diffusers converts while loading
            found = convert_unet_state_dict_to_peft(found)
    except _NOT_ITS_LAYOUT.get(reader, _OF_OTHERS):
        return None
    used = frozenset().union(*(tensor.keys for tensor in found.values() if isinstance(tensor, _Traced)))
    if any(stored[key].any() for key in stored.keys() - used) or any(
        key.rsplit(".lora_", 1)[0] not in places for key in found
    ):
        return None
    return {key: tensor.as_subclass(Tensor) for key, tensor in found.items()}
