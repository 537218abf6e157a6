"""The step that the benchmark holds ours against computes the same losses, only dearer: it is no straw man."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from components.gadms.masking import dual_mask
from components.gadms.methods import RetrievalConfig
from components.gadms.tasks import RetrievalTask

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/train_step.py"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return runpy.run_path(str(SCRIPT))
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_both_steps_have_the_same_losses_where_there_is_no_padding(benchmark, encoder):
    batch = benchmark["random_batch"](encoder, 4, 400)
    assert (batch["ids"].argmax(-1) == 76).all()
    task = RetrievalTask(encoder, RetrievalConfig(name="random", decoder_depth=1), captions=4).eval()
    unknown = torch.full(batch["ids"].shape, -1.0)
    copies = dual_mask(batch["ids"], unknown, mask_id=encoder.tokenizer.mask_id, seed=0, step=0)
    with torch.no_grad():
        ours = task(batch, 0)
        image = encoder.encode_image(batch["pixels"])
        sdm, mtp = benchmark["reference_losses"](encoder, task.decoder, batch, copies, *image)
    torch.testing.assert_close(sdm, ours["sdm"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(mtp, ours["mtp"], atol=1e-5, rtol=1e-5)


def test_each_method_moves_weights_of_its_own(benchmark, encoder):
    batch = benchmark["random_batch"](encoder, 4, 12)
    methods = benchmark["steps"](encoder, batch)
    assert tuple(methods) == benchmark["METHODS"]
    for step in methods.values():
        step()
        assert not torch.equal(step.task.encoder.clip.visual.proj, encoder.clip.visual.proj)


def test_the_reference_scores_take_one_gradient_for_each_scored_layer(benchmark, encoder, ids, pixels, monkeypatch):
    asked, gradient = [], torch.autograd.grad

    def count(outputs, *arguments, **keywords):
        asked.append(tuple(outputs.shape))
        return gradient(outputs, *arguments, **keywords)

    monkeypatch.setattr(torch.autograd, "grad", count)
    scores = benchmark["released_scores"](encoder, ids, encoder.encode_image(pixels)[0])
    assert asked == [(4, 4)] * 2  # two thirds of three layers
    assert scores.shape == ids.shape
