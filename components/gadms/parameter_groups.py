"""Learning rates of the retrieval task's parameters."""

import re
from typing import Any

from torch import nn

HEADS = ("decoder.", "classifier.")
_BLOCK = re.compile(r"(?:^|\.)(visual\.)?transformer\.resblocks\.(\d+)\.")
_EMBEDDINGS = ("class_embedding", "positional_embedding", "token_embedding.weight", "conv1.weight", "ln_pre.")


def grouped(
    task: nn.Module, learning_rate: float, *, head_factor: float, bias_factor: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Return optimiser groups of all trainable parameters of `task`, which has an `encoder` (a DualEncoder) and heads.

    The learning rate is multiplied by `head_factor` for heads, by `bias_factor` for biases and norms (which have no weight decay),
    and in the towers by `layer_decay` for each block between the parameter and the tower's output, once more for embeddings.
    (IRRA's factor for biases excludes the gains of norms, and is not multiplied with that of the heads.)
    """
    blocks = {visual: _blocks(task, visual) for visual in (True, False)}
    groups: dict[tuple[bool, bool, int], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            head = name.startswith(HEADS)
            distance = 0 if head or layer_decay == 1 else _distance(name, blocks)
            groups.setdefault((head, parameter.ndim < 2, distance), []).append(parameter)
    result: list[dict[str, Any]] = []
    for (head, bias, distance), parameters in sorted(groups.items()):
        factor = (head_factor if head else 1.0) * (bias_factor if bias else 1.0) * layer_decay**distance
        group: dict[str, Any] = {"params": parameters, "lr": learning_rate * factor}
        result.append(group | ({"weight_decay": 0.0} if bias else {}))
    return result


def _blocks(task: nn.Module, visual: bool) -> int:
    """Number of transformer blocks of a tower."""
    found = (_BLOCK.search(name) for name, _ in task.named_parameters())
    return 1 + max((int(match[2]) for match in found if match and bool(match[1]) == visual), default=-1)


def _distance(name: str, blocks: dict[bool, int]) -> int:
    """Number of blocks to the output: 0 after the last block, one more than the first block for embeddings."""
    match = _BLOCK.search(name)
    if match:
        return blocks[bool(match[1])] - int(match[2])
    if any(part in name for part in _EMBEDDINGS):
        return blocks["visual." in name] + 1
    return 0
