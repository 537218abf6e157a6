"""The text search in MLflow's registry: registered here, loaded by a process that has no checkout, asked in both forms."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_galleries import small_model, write_gallery

from components.errors import DataError
from components.files import file_digest
from components.search.gallery.reading import Gallery
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import tree_digests
from pipelines.search.registry import register
from pipelines.tracking import runs as tracking
from pipelines.workspace import Workspace

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]  # starts a process that imports torch and MLflow

CAPTIONS = ["a woman in a red coat", "a man in a blue shirt", "a tall man with a green bag", "a woman with a grey hat"]
ASK = """
import json, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/people/1")
sentences = ["a woman in a red coat", "a man"]
as_lists = model.predict({"query": sentences}, params={"top": 2})
as_table = model.predict(pd.DataFrame({"query": sentences}))
code = sys.modules["components"].__file__
print(json.dumps({"code": code, "lists": as_lists.to_dict("list"), "table": as_table.to_dict("list")}))
"""


@pytest.fixture
def workspace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An untrained encoder and an index of four vectors; the store is beside them."""
    import torch

    from components.gadms.model import WEIGHTS_FILE, DualEncoder
    from components.gadms.tokenizer import CaptionTokenizer
    from components.search.index import GalleryIndex

    root = tmp_path / "workspace"
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [32, 16], "layers": 1, "width": 24, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    }
    DualEncoder.create(config, tokenizer=CaptionTokenizer.from_corpus(CAPTIONS)).save(root / "models/retrieval/gadms")
    vectors = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    metadata = {"identity": [1, 2, 3, 4], "caption": CAPTIONS}
    model = {"weights": file_digest(root / "models/retrieval/gadms" / WEIGHTS_FILE)}
    GalleryIndex(vectors, [10, 11, 12, 13], metadata=metadata, model=model).save(root / "data/index")
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    shutil.copy(empty_store, root / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    return Workspace(root, root / ".home")


def index_run(workspace: Workspace) -> str:
    """A finished run of the index stage, and its manifest."""
    tracker = tracking.connect(workspace)
    run = str(tracker.client.create_run(tracker.experiment, run_name="index").info.run_id)
    tracker.client.set_terminated(run)
    outputs = {"data/index": tree_digests(workspace.path("data/index"))}
    done = {"stage": "index", "fingerprint": "f" * 64, "run": run, "outputs": outputs}
    folder = workspace.home / f"index-{'f' * 16}"
    folder.mkdir(parents=True)
    (folder / "DONE.json").write_text(json.dumps(done))
    return run


def expected(workspace: Workspace, top: int) -> dict[str, Any]:
    from components.search.query import TextSearch

    sentences = ["a woman in a red coat", "a man"]
    search = TextSearch.open(workspace.path("models/retrieval/gadms"), workspace.path("data/index"))
    found = search.many(sentences, top)
    return {
        "query": sentences,
        "image_ids": [[match.image_id for match in matches] for matches in found],
        "scores": [[match.score for match in matches] for matches in found],
        "identities": [[match.metadata["identity"] for match in matches] for matches in found],
        "captions": [[match.metadata["caption"] for match in matches] for matches in found],
        "unread": ["", ""],
    }


def test_a_registered_search_answers_in_a_fresh_process_as_the_search_does_here(workspace, tmp_path):
    run = index_run(workspace)
    assert "people version 1" in register("people", workspace)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    program = tmp_path / "elsewhere" / "ask.py"
    program.parent.mkdir()
    program.write_text(ASK)
    asked = subprocess.run(
        [sys.executable, "-P", str(program)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=program.parent,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout.splitlines()[-1])
    for found, top in ((answer["lists"], 2), (answer["table"], 5)):
        wanted = expected(workspace, top)
        assert found.pop("scores") == [pytest.approx(scores, abs=1e-6) for scores in wanted.pop("scores")]
        assert found == wanted
    assert not Path(answer["code"]).is_relative_to(ROOT)  # the code that travels with the model
    assert list(workspace.root.rglob("*.pkl")) == []

    client = tracking.connect(workspace).client
    version = client.get_model_version("people", "1")
    assert version.tags["pipelines.fingerprint"] == "f" * 64
    logged = client.get_run(version.run_id)
    assert logged.data.tags["mlflow.parentRunId"] == logged.data.tags["upstream.index"] == run
    assert (logged.info.status, client.get_run(run).info.status) == ("FINISHED", "FINISHED")


def test_any_gallery_is_registered_with_the_model_that_made_it(workspace, tmp_path):
    """In this process; the model of the gallery is gone then, so the one that travels answers."""
    import mlflow

    encoder = small_model(tmp_path / "model")
    write_gallery(tmp_path / "people", encoder=encoder)
    gallery = Gallery.open(tmp_path / "people")
    assert register("strangers", workspace, tmp_path / "people").startswith("registered strangers version 1: ")
    (sentence,) = encoder.sentences(["a man in a red coat"])
    scores = np.asarray(gallery.vectors, np.float64) @ sentence
    best = [gallery.table.slice(int(row), 1).to_pylist()[0] for row in np.argsort(-scores, kind="stable")[:5]]
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "people")
    loaded = mlflow.pyfunc.load_model("models:/strangers/1")
    (found,) = loaded.predict({"query": ["a man in a red coat"]}, params={"top": 5}).to_dict("records")
    assert found["image_ids"] == [row["id"] for row in best]
    assert found["identities"] == [row["identity"] or "" for row in best]
    assert found["captions"] == [row["caption"] for row in best]
    assert found["files"] == [row["file"] for row in best]
    assert found["scores"] == pytest.approx(np.sort(scores)[::-1][:5], abs=1e-6)
    version = tracking.connect(workspace).client.get_model_version("strangers", "1")
    assert version.tags["pipelines.encoder"] == encoder.digest
    assert version.tags["pipelines.gallery_version"] == gallery.version


def test_a_gallery_that_is_none_or_of_another_checkout_is_one_line(workspace, tmp_path):
    with pytest.raises(DataError, match="does not exist; make one: python -m pipelines gallery"):
        register("people", workspace, tmp_path / "nowhere")
    shutil.copytree(workspace.path("data/index"), tmp_path / "other")
    with pytest.raises(DataError, match="is made by the pipeline of another checkout"):
        register("people", workspace, tmp_path / "other")


def test_an_index_that_no_known_run_made_is_one_line(workspace):
    with pytest.raises(
        DataError, match="the run that made data/index is unknown: run `python -m pipelines repro --force index`"
    ):
        register("people", workspace)


def test_a_missing_index_is_one_line(tmp_path):
    with pytest.raises(DataError, match="models/retrieval/gadms does not exist: run `python -m pipelines repro index`"):
        register("people", Workspace(tmp_path, tmp_path / ".home"))
