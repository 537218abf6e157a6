"""Eval mode for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set `model` to eval mode inside the block; afterwards, also after an error, every part of it is in the mode it was in.

    Of every part: `model.train()` would also wake those that were kept in eval mode, such as frozen batch normalisation.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
