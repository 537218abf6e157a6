"""Learning rates and weight decay of the retrieval task's parameters, by IRRA's rules.

| parameters                                           | factor of a matrix or gain | of a bias |
|------------------------------------------------------|----------------------------|-----------|
| the decoder's head, the classifier                   | head                       | head      |
| the decoder's cross-attention and blocks             | head                       | bias      |
| the decoder's other norms, both towers               | 1                          | bias      |

So the two factors are never multiplied with each other (`build_optimizer` of the released code asks for the names "cross", "bias",
then "classifier" and "mlm_head", and the last that fits decides).
"""

import re
from typing import Any

from torch import nn

_HEADS = ("decoder.head.", "decoder.vocabulary.", "classifier.")
_CROSS = ("decoder.cross_attention.", "decoder.blocks.")
_BLOCK = re.compile(r"(?:^|\.)(visual\.)?transformer\.resblocks\.(\d+)\.")
_EMBEDDINGS = ("class_embedding", "positional_embedding", "token_embedding.weight", "conv1.weight", "ln_pre.")


def grouped(
    task: nn.Module,
    learning_rate: float,
    *,
    head_factor: float,
    bias_factor: float,
    decay_gains: bool,
    layer_decay: float,
) -> list[dict[str, Any]]:
    """Return optimiser groups of all trainable parameters of `task`, which has an `encoder` (a DualEncoder) and heads.

    The learning rate is multiplied by the factor of the table, and in the towers by `layer_decay` for each block between the
    parameter and the tower's output, once more for embeddings. Biases have no weight decay; norms' gains and the class embedding
    have it with `decay_gains`, as in IRRA.
    """
    blocks = {visual: _blocks(task, visual) for visual in (True, False)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            bias = name.endswith("bias")
            factor = bias_factor if bias else 1.0
            if name.startswith(_HEADS) or (name.startswith(_CROSS) and not bias):
                factor = head_factor
            decays = not bias and (decay_gains or parameter.ndim > 1)
            if layer_decay != 1 and name.startswith("encoder."):
                factor *= layer_decay ** _distance(name, blocks)
            groups.setdefault((factor, decays), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * factor} | ({} if decays else {"weight_decay": 0.0})
        for (factor, decays), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


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
