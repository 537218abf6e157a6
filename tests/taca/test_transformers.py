"""TACA in every transformer class of diffusers: parity with an explicit softmax, and a status for each class."""

import pytest
import torch
from explicit_softmax import explicit_attention, float64_throughout, output
from tiny_transformers import TINY

from components.taca.install import enable_taca
from components.taca.registry import FAMILIES
from components.taca.schedule import TemperatureSchedule

GAMMA = 1.5  # exact in float32, as the schedule holds it


SUPPORTED = [name for name in TINY if TINY[name].transformer in FAMILIES]


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_whole_model_equals_the_stock_one_with_an_explicit_softmax(name: str) -> None:
    """In float64, with the models' own casts to float32 switched off. Of two samples, the second is below the threshold."""
    tiny = TINY[name]
    model = tiny.build().double()
    call = tiny.call([1.0, 0.5], torch.float64)
    with float64_throughout():
        stock = output(model, call.arguments)
        controls = {"effect": "bias", "queries": "text" if tiny.text_queries else "image"}
        for arm in ({}, controls):
            with enable_taca(model, TemperatureSchedule(GAMMA, 0.9, **arm)) as handle:
                assert handle.patched_modules == tiny.layers
                got = output(model, tiny.inputs([1.0, 0.5], torch.float64))
            with explicit_attention(tiny, model, call, [GAMMA, 1.0], **arm) as changed:
                expected = output(model, call.arguments)
            assert sum(changed) > 0
            assert (got - expected).abs().max() < 1e-7
            assert (expected[0] - stock[0]).abs().max() > 1e-2  # so that the agreement means something
            assert (expected[1] - stock[1]).abs().max() < 1e-7
