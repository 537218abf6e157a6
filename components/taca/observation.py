"""Observe joint attention while a transformer runs, with TACA on or off."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.taca.install import enable_taca, taca_handle
from components.taca.processors import Observer
from components.taca.schedule import TemperatureSchedule


@contextmanager
def observe_attention(transformer: Any, observer: Observer) -> Iterator[None]:
    """Call `observer` for every joint attention layer of every forward inside the block.

    transformer: one that TACA supports, or a pipeline. `observer(layer, query, key, text, gamma, attn_mask, scale)`
    receives the layer's module name; query and key (B, S, H, D) after normalisation and rotation; the slice of the text, or
    bool (B, S) where its place differs by sample; gamma as it broadcasts to the text keys (B, T, H, 1), None for stock
    attention; the mask; the softmax scale, None for 1/sqrt(D). Neither outputs nor whether TACA is enabled change.
    """
    handle = taca_handle(transformer)
    temporary = enable_taca(transformer, TemperatureSchedule(gamma=1.0)) if handle is None else None
    observed = (handle or temporary).joint_processors  # type: ignore[union-attr]
    for processor in observed:
        processor.observer = observer
    try:
        yield
    finally:
        for processor in observed:
            processor.observer = None
        if temporary is not None:
            temporary.remove()
