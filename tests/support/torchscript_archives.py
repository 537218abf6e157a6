"""TorchScript archives such as OpenAI publishes: modules of a module, with these tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class Part(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def write_archive(file: Path, state: Mapping[str, Tensor], *, mask: bool = True) -> None:
    """Write `state` by `torch.jit.save`; with `mask` beside it an attribute that is no parameter, as CLIP's blocks have."""
    whole = Part()
    for name, tensor in state.items():
        *path, last = name.split(".")
        part = whole
        for step in path:
            if not hasattr(part, step):
                part.add_module(step, Part())
            part = getattr(part, step)
        if tensor.is_floating_point():
            part.register_parameter(last, nn.Parameter(tensor.clone()))
        else:
            part.register_buffer(last, tensor)
    if mask:
        whole.attn_mask = torch.full((2, 2), -torch.inf).triu(1)
    torch.jit.save(torch.jit.script(whole), str(file))
