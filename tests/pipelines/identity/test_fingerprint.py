"""What a result is known by, and what it is not."""

import os
import subprocess
import sys

import pytest

from components.errors import ParameterError
from pipelines.graph import find
from pipelines.identity import closure
from pipelines.identity import fingerprint as subject
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import digest, fingerprint, present_fingerprint, stage_inputs, tree_digests
from pipelines.params import Parameters, load
from pipelines.schema.running import Compute


@pytest.fixture
def people(tmp_path):
    folder = tmp_path / "people"
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.parquet").write_bytes(b"rows")
    (folder / "shards" / "train.parquet").write_bytes(b"pictures")
    return folder


@pytest.fixture
def params() -> Parameters:
    return load(ROOT / "params.yaml")


def of(params, people, address="probe", threads=2):
    run = find(address)
    return fingerprint(run, params.only(run.stage.reads), {"people": people}, threads)


def test_the_same_is_the_same_in_another_process(params, people):
    code = (
        "import sys; from pathlib import Path; from pipelines.identity.closure import ROOT; from pipelines.graph import find;"
        "from pipelines.identity.fingerprint import fingerprint; from pipelines.params import load; run = find('probe');"
        "print(fingerprint(run, load(ROOT / 'params.yaml').only(run.stage.reads), {'people': Path(sys.argv[1])}, 2))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run(
        [sys.executable, "-c", code, str(people)], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == of(params, people)


@pytest.mark.parametrize("change", [{"seed": 1}, {"pictures": {"height": 96}}, {"probe": {"training": {"steps": 7}}}])
def test_a_parameter_that_the_stage_reads_changes_it(params, people, change):
    assert of(updated(params, change), people) != of(params, people)


@pytest.mark.parametrize(
    "change", [{"taca": {"gamma": 1.7}}, {"compute": {"workers": 2}}, {"compute": {"device": "cpu", "max_failures": 9}}]
)
def test_a_foreign_section_and_where_it_runs_do_not(params, people, change):
    changed = updated(params, change)
    assert changed != params
    assert of(changed, people) == of(params, people)


def updated(params: Parameters, change: dict) -> Parameters:
    document = params.model_dump()

    def merge(into: dict, values: dict) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(document, change)
    return Parameters.model_validate(document)


def test_the_thread_count_changes_it(params, people):
    assert of(params, people, threads=3) != of(params, people)


def test_the_arm_changes_it(params, people):
    assert of(params, people, "taca_train@lora") != of(params, people, "taca_train@taca")


def test_input_bytes_names_and_their_places_change_it(params, people):
    seen = {of(params, people)}
    (people / "shards" / "train.parquet").write_bytes(b"picturez")
    seen.add(of(params, people))
    (people / "shards" / "train.parquet").rename(people / "shards" / "val.parquet")
    seen.add(of(params, people))
    (people / "empty").write_bytes(b"")
    seen.add(of(params, people))
    assert len(seen) == 4


def test_times_and_the_place_of_the_input_do_not(params, people):
    before = of(params, people)
    os.utime(people / "manifest.parquet", (0, 0))
    assert of(params, people.rename(people.parent / "elsewhere")) == before


def test_folders_behind_links_are_read(people, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "set").symlink_to(people)
    assert set(tree_digests(tmp_path / "raw")) == {"set/manifest.parquet", "set/shards/train.parquet"}


def test_a_source_behind_the_stage_changes_it_and_another_does_not(params, people, tmp_path, monkeypatch):
    run = find("probe")
    for source in [*closure.stage_sources(run.stage), subject.LOCK, "components/taca/attention.py"]:
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source).write_bytes((ROOT / source).read_bytes())
    monkeypatch.setattr(subject, "ROOT", tmp_path)
    before = of(params, people)
    (tmp_path / "components/taca/attention.py").write_text("changed = True\n")
    assert of(params, people) == before
    for source in ("components/training/loop.py", subject.LOCK):
        (tmp_path / source).write_text((tmp_path / source).read_text() + "\n# changed\n")
        assert of(params, people) != before
        before = of(params, people)


def test_what_has_no_json_form_is_refused_rather_than_hashed_by_its_looks():
    for value in (object(), {1, 2}, float("nan")):
        with pytest.raises((TypeError, ValueError)):
            digest({"value": value})


def test_the_defaults_of_compute_need_no_accelerator():
    assert (Compute().workers, Compute().device) == (0, "auto")


# -- weights in files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def weighted(params, tmp_path):
    """Parameters that name a file of CLIP's weights and one of a detector's, in a workspace that has them."""
    (tmp_path / "data/weights").mkdir(parents=True)
    for name in ("clip.pt", "rcnn.pth"):
        (tmp_path / "data/weights" / name).write_bytes(name.encode())
    detector = {"weights": "data/weights/rcnn.pth", "sha256": "0" * 64}
    return updated(
        params, {"retrieval": {"pretrained": "data/weights/clip.pt"}, "curate": {"detector": detector}}
    ), tmp_path


@pytest.mark.parametrize(
    ("address", "read"),
    [
        ("curate", ["data/weights/clip.pt", "data/weights/rcnn.pth"]),
        ("gadms_pretrain@gadms", ["data/weights/clip.pt"]),
        ("probe", []),
    ],
)
def test_files_of_weights_are_inputs_of_the_stages_that_read_them_and_count_by_content(weighted, address, read):
    params, root = weighted
    run = find(address)
    assert [path for path in stage_inputs(run, params, root).values() if path not in run.inputs.values()] == read
    before = present_fingerprint(run, params, root)
    for path in read:
        (root / path).write_bytes(b"other weights")
        assert present_fingerprint(run, params, root) != before
        before = present_fingerprint(run, params, root)


def test_a_tag_of_published_weights_is_no_file(params, tmp_path):
    tagged = updated(params, {"retrieval": {"pretrained": "openai"}})
    run = find("gadms_pretrain@gadms")
    assert stage_inputs(run, tagged, tmp_path) == run.inputs


def test_under_dvc_the_environment_does_not_choose_the_threads(monkeypatch):
    monkeypatch.setenv("PIPELINES_COMPUTE__THREADS", "3")
    assert load(ROOT / "params.yaml").compute.threads == 3
    with pytest.raises(ParameterError, match="THREADS = 3"):
        load(ROOT / "params.yaml", for_dvc=True)  # as `submit` asks before it uploads anything
    monkeypatch.setenv("DVC_STAGE", "probe")
    with pytest.raises(ParameterError, match=r"THREADS = 3: .*dvc exp run -S compute\.threads=3"):
        load(ROOT / "params.yaml")
    monkeypatch.setenv("PIPELINES_COMPUTE__THREADS", "1")
    assert load(ROOT / "params.yaml").compute.threads == 1
