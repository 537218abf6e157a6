"""Pre-training on a stream as the stage does it, read in this process."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from components.errors import ParameterError
from components.gadms.model import DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.shards import CaptionRow, DatasetWriter
from components.persons.streaming.corpus import open_corpus
from pipelines.engine.context import StageContext
from pipelines.identity.closure import ROOT
from pipelines.params import load
from pipelines.scratch.folder import Scratch
from pipelines.stages.parts.streamed_training import train_streamed


@pytest.fixture
def corpus(tmp_path):
    random = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "people") as writer:
        for i in range(40):
            file = io.BytesIO()
            caption = f"a man in red {i}" + " and blue" * (40 * (i == 7))  # one is longer than the model reads
            Image.fromarray(random.integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(file, "PNG")
            writer.add(file.getvalue(), [CaptionRow(caption)], identity=i, split="train", source="made")
    return open_corpus(tmp_path / "people")


def phase(**changes):
    """Parameters, method and training of a few steps."""
    params = load(ROOT / "params.yaml")
    settings = params.gadms_pretrain
    few = {"steps": 3, "batch": 8, "warmup_steps": 0, "checkpoint_every": 3, "report_every": 3, "validate_every": None}
    training = replace(settings.training, **{**few, **changes.get("training", {})})
    method = replace(settings.method, **{"warmup_steps": 1, **changes.get("method", {})})
    return params, method, training


def run(corpus, folder, readers=0, **changes):
    params, method, training = phase(**changes)
    encoder = DualEncoder.create(
        params.retrieval.architecture,
        image_size=(64, 32),
        tokenizer=CaptionTokenizer.from_corpus(corpus.captions()),
        seed=0,
    )
    context = StageContext(Scratch(folder / "scratch"), seed=0, arm="gadms", device=torch.device("cpu"))
    return encoder, train_streamed(encoder, corpus, method, training, params, context, folder / "model", readers)


def test_a_model_is_trained_on_the_stream_and_saved(corpus, tmp_path, capsys):
    encoder, metrics = run(corpus, tmp_path)
    assert (metrics["captions"], metrics["captions_counted"], metrics["captions_cut"]) == (40, 40, 1)
    assert "1 of 40 captions at the start of the corpus are longer than 77 tokens" in capsys.readouterr().out
    start = DualEncoder.create(
        phase()[0].retrieval.architecture, image_size=(64, 32), tokenizer=encoder.tokenizer, seed=0
    )
    saved = DualEncoder.load(tmp_path / "model").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in encoder.state_dict().items())
    assert any(not torch.equal(saved[name], value) for name, value in start.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"training": {"validate_every": 2}}, "validate_every"), ({"method": {"id_weight": 1.0}}, "id_weight")],
)
def test_what_a_stream_has_no_data_for_is_refused(corpus, tmp_path, changes, says):
    with pytest.raises(ParameterError, match=says):
        run(corpus, tmp_path, **changes)
