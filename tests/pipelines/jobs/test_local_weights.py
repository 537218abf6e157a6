"""Local files of weights go the way of a job: uploaded by the submitter, placed on the node, read by the stage."""

import io
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from components.files import file_digest
from pipelines import graph, presets
from pipelines.engine.worker import StageTask
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import present_fingerprint, stage_inputs
from pipelines.jobs import submitter
from pipelines.jobs.folders import JobFolders
from pipelines.jobs.snapshot import freeze
from pipelines.jobs.task import JobTask
from pipelines.params import load
from pipelines.schema.running import Compute
from pipelines.scratch.folder import Scratch
from pipelines.scratch.storage import Storage

KEY = "stage-0123"


def workspace(folder: Path, address: str, **values):
    """A checkout whose params.yaml has these values, with something at each input of the stage."""
    folder.mkdir()
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    presets.edit(folder / "params.yaml", values)
    for path in graph.find(address).inputs.values():
        (folder / path).mkdir(parents=True)
        (folder / path / "some").write_text(path)
    (folder / "data/weights").mkdir()
    return folder


def submitted(root: Path, address: str, storage: Storage) -> StageTask:
    """Upload what the runner's task of this stage needs."""
    run, chosen = graph.find(address), load(root / "params.yaml")
    task = StageTask(address, str(root), str(root / "scratch"), chosen.only(run.stage.reads), {})
    submitter._upload(run, task, Compute(threads=1, device="cpu"), storage, KEY, root)
    return task


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_weights_of_the_matcher_and_of_the_detector_are_placed_where_the_parameters_name_them(tmp_path, kind):
    detector = {"weights": "data/weights/key points.pth", "sha256": "0" * 64}
    chosen = {"retrieval": {"pretrained": "data/weights/clip"}, "curate": {"detector": detector}}
    root = workspace(tmp_path / "checkout", "curate", **chosen)
    (root / "data/weights/clip").mkdir()
    for name in ("clip/model.safetensors", "clip/config.json", "key points.pth"):
        (root / "data/weights" / name).write_text(f"content of {name}")
    (tmp_path / "storage").mkdir()
    storage = Storage(str(tmp_path / "storage") if kind == "folder" else f"memory://{uuid.uuid4().hex}", timeout=0)
    submitted(root, "curate", storage)
    folders = JobFolders(storage, JobTask.read(storage, KEY))
    folders.begin()
    run, params = graph.find("curate"), load(root / "params.yaml")
    for rank in (0, 1):
        with folders.open(rank) as node:
            assert stage_inputs(run, params, node.root) == stage_inputs(run, params, root)
            # The fingerprint counts every file of every input.
            assert present_fingerprint(run, params, node.root) == present_fingerprint(run, params, root)


@pytest.mark.heavy
def test_a_job_begins_with_the_weights_of_a_local_file(tmp_path):
    import torch
    from PIL import Image

    from components.gadms.model import DualEncoder
    from components.persons.shards import CaptionRow, DatasetWriter

    architecture = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [64, 32], "layers": 1, "width": 64, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    address, weights = "gadms_pretrain@gadms", "data/weights/clip weights.pt"
    root = workspace(tmp_path / "checkout", address, gadms_pretrain={"corpus": "none"})
    shutil.rmtree(root / "data/curated")
    with DatasetWriter(root / "data/curated") as writer:
        picture = io.BytesIO()
        Image.new("RGB", (32, 64)).save(picture, "PNG")
        writer.add(picture.getvalue(), [CaptionRow("a person")], identity=0, split="train", source="test")
    clip = DualEncoder.create(architecture, image_size=(64, 32), seed=9).clip
    torch.save(clip.state_dict(), root / weights)
    pinned = {"pretrained": weights, "pretrained_sha256": file_digest(root / weights)}
    presets.edit(root / "params.yaml", {"retrieval": {"architecture": architecture, **pinned}})
    (tmp_path / "storage").mkdir()
    storage = Storage(str(tmp_path / "storage"), timeout=0)
    submitted(root, address, storage)
    freeze(ROOT, tmp_path / "node/code")
    shutil.move(root, tmp_path / "elsewhere")  # the node sees the storage alone
    command = [sys.executable, "-m", "pipelines.jobs.stage_job", storage.url, KEY]
    done = subprocess.run(command, cwd=tmp_path / "node/code", capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    scratch = Scratch(tmp_path / "back")
    scratch.begin()
    submitter._fetch_results(storage, KEY, scratch)
    trained = DualEncoder.load(scratch.writing / "models/pretrained/gadms").clip.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in clip.state_dict().items())
