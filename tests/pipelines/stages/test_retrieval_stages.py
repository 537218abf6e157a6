"""The retrieval stages on a few pictures: where training begins, what it learns from, and which weights it leaves."""

import hashlib
import io
import json
import shutil

import pytest
import torch
from PIL import Image
from workspaces import FROM_NOTHING

from components.errors import ParameterError
from components.gadms.model import DualEncoder
from components.persons.shards import CaptionRow, DatasetWriter
from components.training.randomness import ShuffledEpochs, generator
from pipelines import params, presets
from pipelines.engine.context import StageContext
from pipelines.identity.closure import ROOT
from pipelines.scratch.folder import Scratch
from pipelines.scratch.metric_log import MetricLog
from pipelines.stages import gadms_finetune, gadms_pretrain

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
TRAINING = {"steps": 6, "batch": 4, "warmup_steps": 0, "report_every": 2, "checkpoint_every": 2}
SMALL = {
    "pictures": {"height": 64, "width": 32},
    "retrieval": {
        **FROM_NOTHING["retrieval"],
        "architecture": {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 24}, "text_cfg": {"width": 24}},
    },
    "gadms_pretrain": {"method": {"warmup_steps": 2, "score_timing": "previous"}, "training": TRAINING},
    "gadms_finetune": {"method": {"warmup_steps": 2}, "training": {**TRAINING, "validate_every": 2}},
    "compute": {"threads": 1},
}


def write(folder, splits):
    with DatasetWriter(folder) as writer:
        for identity in range(12):
            split = splits[identity % len(splits)]
            pixels = torch.randint(0, 256, (64, 32, 3), generator=generator(identity, "picture"), dtype=torch.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(file, "PNG")
            caption = f"a person in a {COLOURS[identity % 6]} coat and {COLOURS[identity // 2]} shoes"
            writer.add(file.getvalue(), [CaptionRow(caption)], identity=identity, split=split, source="test")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace with data/people, which has a val split, and data/curated, which has none."""
    root = tmp_path_factory.mktemp("stages")
    write(root / "data/people", ["train", "train", "val"])
    write(root / "data/curated", ["train"])
    return root


def chosen(folder, **values):
    file = folder / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", file)
    presets.edit(file, SMALL)
    presets.edit(file, values)
    return params.load(file)


def run(stage, root, folder, inputs, *, arm="gadms", **values):
    """A stage's metrics, the encoder it wrote, and what it reported."""
    scratch = Scratch(folder / "scratch")
    scratch.begin()
    settings = chosen(folder, **values)
    context = StageContext(scratch, seed=settings.seed, arm=arm, device=torch.device("cpu"))
    paths = {name: root / path for name, path in inputs.items()}
    metrics = stage.run(settings, paths, {"model": folder / "model"}, context)
    lines = MetricLog(scratch.metrics_file).read() if scratch.metrics_file.exists() else []
    return metrics, DualEncoder.load(folder / "model"), lines


CURATED = {"curated": "data/curated"}


def test_fine_tuning_reports_validation_and_leaves_the_best_weights(root, tmp_path):
    _, before, _ = run(gadms_pretrain, root, tmp_path, CURATED)
    (tmp_path / "fine").mkdir()
    paths = {"people": root / "data/people", "pretrained": tmp_path / "model"}
    scratch = Scratch(tmp_path / "fine/scratch")
    scratch.begin()
    context = StageContext(scratch, seed=0, arm="nam", device=torch.device("cpu"))
    metrics = gadms_finetune.run(chosen(tmp_path), paths, {"model": tmp_path / "fine/model"}, context)
    seen = {
        x["step"]: x["metrics"]["val/R@1"] for x in MetricLog(scratch.metrics_file).read() if "val/R@1" in x["metrics"]
    }
    assert set(seen) == {2, 4, 6}
    best = max(seen.values())
    first = min(step for step, value in seen.items() if value == best)
    assert metrics["selected"] == {"step": first, "val/R@1": best}
    json.dumps(metrics)
    assert (metrics["captions"], metrics["captions_cut"], metrics["identities"]) == (8, 0, 8)
    state = context.load()[1]
    kept = DualEncoder.load(tmp_path / "fine/model").clip
    assert torch.equal(kept.visual.proj, state["buffers"]["best.visual/proj"])
    assert not torch.equal(kept.visual.proj, before.clip.visual.proj)


def test_fine_tuning_goes_on_from_the_decoder_of_pre_training(root, tmp_path, capsys):
    still = {**TRAINING, "learning_rate": 1e-12, "weight_decay": 0.0, "validate_every": None}
    run(gadms_pretrain, root, tmp_path, CURATED)
    trained = DualEncoder.load(tmp_path / "model").decoder_weights

    def sha256(name):
        return hashlib.sha256((tmp_path / f"model/{name}.safetensors").read_bytes()).hexdigest()

    left = {}
    for start in ("pretrained", "new"):
        folder = tmp_path / start
        folder.mkdir()
        paths = {"people": "data/people", "pretrained": tmp_path / "model"}
        method = {"warmup_steps": 2, "decoder_start": start}
        _, encoder, _ = run(gadms_finetune, root, folder, paths, gadms_finetune={"method": method, "training": still})
        left[start] = encoder.decoder_weights
    assert set(trained) == set(left["new"]) == set(left["pretrained"])
    for name, tensor in trained.items():
        torch.testing.assert_close(left["pretrained"][name], tensor, atol=1e-8, rtol=0)
    assert not torch.allclose(left["new"]["head.0.weight"], trained["head.0.weight"])
    assert "masked-token decoder: goes on from the pretrained weights\n" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    digest = hashlib.sha256("".join(sha256(file) for file in ("open_clip_model", "masked_token_decoder")).encode())
    own = {"pretrained": str(tmp_path / "model"), "pretrained_sha256": digest.hexdigest()}
    _, passed, _ = run(
        gadms_pretrain, root, tmp_path / "none", CURATED, retrieval=own, gadms_pretrain={"corpus": "none"}
    )
    assert all(torch.equal(passed.decoder_weights[name], tensor) for name, tensor in trained.items())


def test_a_set_without_a_val_split_says_so_in_one_line_and_keeps_the_last_weights(root, tmp_path, capsys):
    inputs = {"people": root / "data/curated", "pretrained": tmp_path / "model"}
    _, before, _ = run(gadms_pretrain, root, tmp_path, CURATED, gadms_pretrain={"corpus": "none"})
    capsys.readouterr()
    scratch = Scratch(tmp_path / "fine")
    scratch.begin()
    context = StageContext(scratch, seed=0, arm="contrastive", device=torch.device("cpu"))
    metrics = gadms_finetune.run(chosen(tmp_path), inputs, {"model": tmp_path / "tuned"}, context)
    assert capsys.readouterr().out.count("no val split to select weights on: the last ones are kept\n") == 1
    assert "selected" not in metrics
    last = context.load()[1]["weights"]["encoder.clip.visual.proj"]
    assert torch.equal(DualEncoder.load(tmp_path / "tuned").clip.visual.proj, last)
    assert not torch.equal(last, before.clip.visual.proj)


def test_pre_training_learns_from_curated_pictures_from_people_or_not_at_all(root, tmp_path):
    found = {}
    for corpus in ("curated", "people", "none"):
        (tmp_path / corpus).mkdir()
        inputs = {**CURATED, "people": "data/people"}
        found[corpus] = run(gadms_pretrain, root, tmp_path / corpus, inputs, gadms_pretrain={"corpus": corpus})
    assert [found[corpus][0].get("captions") for corpus in found] == [12, 8, None]
    # 2 steps of warm-up have seen 8 of 12 captions, and a score masks those that come again; all 8 of the people.
    order = ShuffledEpochs(12, 0, "epoch").rows(torch.arange(24)).tolist()
    known = sum(caption in order[: 4 * (place // 4)] for place, caption in enumerate(order) if place >= 8)
    assert known < 16
    assert [found[corpus][0].get("masked_by_score") for corpus in found] == [known / 16, 1.0, None]
    assert [len(found[corpus][2]) > 0 for corpus in found] == [True, True, False]


def test_training_starts_from_a_model_folder_of_the_workspace_once_it_is_pinned(root, tmp_path):
    encoder = DualEncoder.create(chosen(tmp_path).retrieval.architecture, image_size=(64, 32), seed=9)
    encoder.save(root / "mine")
    digest = hashlib.sha256((root / "mine/open_clip_model.safetensors").read_bytes()).hexdigest()
    wanted = {"retrieval": {"pretrained": "mine"}, "gadms_pretrain": {"corpus": "none"}}
    with pytest.raises(ParameterError, match=f"set it to {digest}"):
        run(gadms_pretrain, root, tmp_path, CURATED, **wanted)
    wanted["retrieval"]["pretrained_sha256"] = digest
    _, passed, _ = run(gadms_pretrain, root, tmp_path, CURATED, **wanted)
    assert torch.equal(passed.clip.visual.proj, encoder.clip.visual.proj)


def test_a_new_encoder_has_the_context_length_of_its_architecture(root, tmp_path):
    text = {"architecture": {"text_cfg": {"context_length": 20}}}
    metrics, short, _ = run(gadms_pretrain, root, tmp_path, CURATED, retrieval=text)
    assert short.clip.context_length == short.tokenizer.context_length == 20
    assert short.tokenizer.is_cut("red " * 19)
    assert metrics["captions_cut"] == 0


def test_the_encoder_may_see_pictures_at_another_size_than_they_are_drawn(root, tmp_path):
    _, encoder, _ = run(gadms_pretrain, root, tmp_path, CURATED, retrieval={"image_size": [32, 16]})
    assert encoder.image_size == (32, 16)
