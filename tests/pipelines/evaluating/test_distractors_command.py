import json
import shutil

import numpy as np
import pytest
import torch
from torchvision.io import encode_png

from components.gadms.cross_domain import split_retrieval
from components.gadms.model import DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from pipelines.__main__ import main
from pipelines.identity.closure import ROOT


@pytest.fixture
def workspace(tmp_path):
    """Four people sought and six others, of noise, and an untrained model."""
    with DatasetWriter(tmp_path / "data/people") as writer:
        for image in range(20):
            pixels = np.random.default_rng(image // 2).integers(0, 200, (3, 32, 16), dtype=np.uint8) + image
            split = "test" if image < 8 else "train" if image < 16 else "val"
            writer.add(
                bytes(encode_png(torch.from_numpy(pixels.astype(np.uint8))).numpy()),
                [CaptionRow(f"person {image // 2} from behind" if image % 2 else f"person {image // 2}")],
                identity=image // 2, split=split, source="noise",
            )  # fmt: skip
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [32, 16], "layers": 1, "width": 24, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    }
    tokenizer = CaptionTokenizer.from_corpus(["person from behind"])
    DualEncoder.create(config, tokenizer=tokenizer, seed=2).save(tmp_path / "models/retrieval/gadms")
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def test_the_verb_writes_both_directions_and_without_strangers_equals_the_evaluation(workspace, capsys):
    output = workspace / "found.json"
    assert main(["--workspace", str(workspace), "distractors", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "sentence → picture" in printed
    assert "picture → sentence" in printed
    found = json.loads(output.read_text())["results"]
    assert list(found) == ["0", "12", "3", "6"]  # sorted as text
    encoder = DualEncoder.load(workspace / "models/retrieval/gadms")
    expected = split_retrieval(encoder, PersonDataset(workspace / "data/people"))
    assert found["0"]["text_to_image"] == pytest.approx(expected)
    assert found["12"]["text_to_image"]["mAP"] <= found["0"]["text_to_image"]["mAP"]
    assert main(["--workspace", str(workspace), "distractors", "--counts", "99"]) == 2
    assert "there are 12 pictures of strangers" in capsys.readouterr().err
