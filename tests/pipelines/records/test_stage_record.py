"""The record of a stage run: code, inputs, machine; and that it contains no secret."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pretended_stages import make_chain, pretend
from repositories import git, make_repository

from pipelines import graph
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.engine import runner
from pipelines.engine.cost import throughput
from pipelines.errors import InfrastructureError
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import tree_digests
from pipelines.params import Parameters, load
from pipelines.records import code_state as subject
from pipelines.records.code_state import MAX_FILE, code_state
from pipelines.records.manifests import find_by_content
from pipelines.records.stage_record import hardware, mlflow_tags, ray_ids, stage_record
from pipelines.redaction import contains_secret, without_secrets
from pipelines.scratch.claims import claims
from pipelines.scratch.manifest import InputRecord, StageRecord
from pipelines.scratch.metric_log import MetricLog
from pipelines.workspace import Workspace


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three committed files: code, a result, a page."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/code.py").write_text("value = 1\n")
    (tmp_path / "dvc.lock").write_text("first\n")
    (tmp_path / "README.md").write_text("first\n")
    (tmp_path / ".gitignore").write_text("*.ignored\n")
    return make_repository(tmp_path)


# -- code --------------------------------------------------------------------------------------------------------------


def test_a_clean_tree_is_its_commit_and_no_patch(repository):
    state = code_state(repository)
    assert state.revision == git(repository, "rev-parse", "HEAD")
    assert (state.dirty, state.patch, state.patch_digest, state.left_out) == (False, "", "", ())


def test_the_patch_makes_the_same_files_again_in_a_clean_worktree(repository, tmp_path_factory):
    (repository / "pipelines/code.py").write_text("value = 2\n")
    (repository / "components/new folder").mkdir(parents=True)
    (repository / "components/new folder/ä.py").write_text("new = True\n")
    (repository / "components/picture.bin").write_bytes(bytes(range(256)))
    (repository / "components/mine.ignored").write_text("not of the code")
    (repository / "dvc.lock").write_text("second\n")  # a result, which the run writes itself
    before = git(repository, "ls-files", "--stage"), git(repository, "count-objects")
    state = code_state(repository)
    assert (state.dirty, state.left_out) == (True, ())
    assert (git(repository, "ls-files", "--stage"), git(repository, "count-objects")) == before

    clean = tmp_path_factory.mktemp("clean") / "tree"
    git(repository, "worktree", "add", "--quiet", "--detach", str(clean), state.revision)
    git(clean, "apply", "--binary", given=state.patch)
    theirs = {name: value for name, value in tree_digests(clean).items() if not name.startswith(".git")}
    ours = {name: value for name, value in tree_digests(repository).items() if not name.startswith(".git/")}
    ours.pop("components/mine.ignored"), ours.pop(".gitignore"), ours.pop("dvc.lock"), theirs.pop("dvc.lock")
    assert theirs == ours


def test_files_that_no_stage_reads_are_no_part_of_the_state(repository):
    """As `generate --output drawn`, `search --picture found.png` and somebody's notes leave them."""
    (repository / "drawn/shards").mkdir(parents=True)
    (repository / "drawn/shards/00000.parquet").write_bytes(os.urandom(2 * MAX_FILE))
    (repository / "found.png").write_bytes(b"picture")
    (repository / "README.md").write_text("second\n")
    state = code_state(repository)
    assert (state.dirty, state.patch, state.left_out) == (False, "", ())


def test_code_that_was_removed_is_in_the_patch(repository):
    (repository / "pipelines/code.py").unlink()
    state = code_state(repository)
    assert state.dirty
    assert "-value = 1" in state.patch


def test_a_checkout_that_git_does_not_trust_is_refused_with_what_to_do(repository, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for a folder of another user
    with pytest.raises(InfrastructureError, match=r"dubious ownership.* --add safe\.directory ") as caught:
        code_state(repository)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("safe.directory") == 1  # git's own advice would be there a second time, cut off


def test_secrets_and_large_files_are_left_out_of_the_patch_and_named(repository, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cr3t-of-the-cluster")
    repository = repository / "pipelines"
    (repository / ".env").write_text("x=1\n")
    (repository / "token.py").write_text("t = 's3cr3t-of-the-cluster'\n")
    (repository / "key.py").write_text("-----BEGIN RSA PRIVATE KEY-----\n")
    (repository / "store.py").write_text("postgresql://me:hunter22@host/db\n")
    (repository / "compose.yaml").write_text("postgresql://me:${PASSWORD}@host/db\n")
    (repository / "large.txt").write_text("x" * MAX_FILE)
    state = code_state(repository.parent)
    assert set(state.left_out) == {
        f"pipelines/{name}" for name in (".env", "token.py", "key.py", "store.py", "large.txt")
    }
    assert "compose.yaml" in state.patch
    assert "s3cr3t" not in state.patch


def test_a_large_new_file_is_named_and_not_read(repository, monkeypatch):
    project = repository / "pipelines"  # a project in a folder of a larger repository
    monkeypatch.setattr(subject, "CODE", (".",))
    sizes = {"large.bin": MAX_FILE + 1, "not so large.bin": MAX_FILE}
    for name, size in sizes.items():
        (project / name).write_bytes(os.urandom(size))
    given = []
    run = subject.run_git
    monkeypatch.setattr(
        subject, "run_git", lambda *words, **more: given.append(more.get("stdin", "")) or run(*words, **more)
    )
    state = code_state(project)
    assert state.left_out == (
        "pipelines/large.bin",
        "pipelines/not so large.bin",
    )  # the patch of the second is longer than it
    assert state.dirty
    assert [name for name in sizes if name in "".join(given).split("\0")] == ["not so large.bin"]


def test_a_copy_of_a_checkout_has_the_state_that_was_written_into_it(tmp_path):
    told = {"git.revision": "c" * 40, "git.dirty": "true", "patch": "diff", "left_out": ["a"]}
    (tmp_path / "provenance.json").write_text(json.dumps(told))
    state = code_state(tmp_path)
    assert (state.revision, state.dirty, state.patch, state.left_out) == ("c" * 40, True, "diff", ("a",))


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://me:hunter22@host:5432/db", "postgresql+psycopg2://me:***@host:5432/db"),
        ("https://me:hunter22@mlflow.example.org/x", "https://me:***@mlflow.example.org/x"),
        ("https://ghp_token@example.org", "https://***@example.org"),
        ("http://host/x?user=a&password=hunter22&b=1", "http://host/x?user=a&password=***&b=1"),
        ("Bearer my-secret-token", "Bearer ***"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("R@1 is 46.1: better", "R@1 is 46.1: better"),
    ],
)
def test_a_secret_is_replaced_and_all_else_is_left(text, shown, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "my-secret-token")
    monkeypatch.setenv("SOME_TOKEN", "R@1")  # too short to be looked for
    assert without_secrets(text) == shown
    assert contains_secret(text) == (shown != text and "ghp_token" not in text and "password=" not in text)


# -- data --------------------------------------------------------------------------------------------------------------


def test_the_md5_of_a_file_and_of_a_folder_is_that_of_dvc(tmp_path):
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs.local import LocalFileSystem

    folder = tmp_path / "folder"
    (folder / "b" / "deep").mkdir(parents=True)
    for name in ("z.txt", "b/a.bin", "b/deep/ö.txt", "B.txt"):
        (folder / name).write_bytes(name.encode() * 100)
    store = HashFileDB(LocalFileSystem(), str(tmp_path / "odb"))
    for path in (folder, folder / "z.txt"):
        _, _, built = build(store, str(path), LocalFileSystem(), "md5")
        assert dvc_md5(path) == built.hash_info.value
    assert dvc_md5(folder, max_bytes=10) is None
    assert dvc_md5(tmp_path / "nothing") is None


def test_an_input_is_traced_to_the_newest_result_with_its_bytes(tmp_path):
    workspace, params = Workspace(tmp_path, tmp_path), load(ROOT / "params.yaml")
    for number, (identity, content) in enumerate((("a" * 64, "1"), ("b" * 64, "2"), ("c" * 64, "2"))):
        folder = tmp_path / f"prepare-{identity[:16]}"
        folder.mkdir()
        done = {
            "stage": "prepare",
            "fingerprint": identity,
            "run": str(number),
            "outputs": {"data/people": {"x": content}},
        }
        (folder / "DONE.json").write_text(json.dumps(done))
        os.utime(folder / "DONE.json", (number, number))
    found = find_by_content("data/people", {"x": "2"}, workspace, params)
    assert found is not None
    assert found.run == "2"
    assert find_by_content("data/people", {"x": "3"}, workspace, params) is None
    assert find_by_content("data/raw", {"x": "2"}, workspace, params) is None  # no stage makes it


# -- the record --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings() -> Parameters:
    return load(ROOT / "params.yaml")


def test_a_record_becomes_tags_of_the_same_names_for_every_stage(settings, repository):
    inputs = {"data/people": InputRecord(sha256="0" * 64, stage="prepare", fingerprint="f", run="r1")}
    tags = []
    for address in ("probe", "gadms_evaluate@gadms"):
        run = graph.find(address)
        record = stage_record(run, settings.only(run.stage.reads), settings, code_state(repository), inputs)
        assert StageRecord.parse(record.to_json()) == record
        tags.append(mlflow_tags(record))
    assert set(tags[0]) == set(tags[1])
    assert {"git.revision", "git.dirty", "git.patch", "env.lock", "env.python", "env.torch", "env.ray"} <= set(tags[0])
    assert {"host.cpu", "host.cores", "host.memory_gb", "host.gpu", "upstream.prepare"} <= set(tags[0])
    assert tags[0]["upstream.prepare"] == "r1"


def test_throughput_is_the_median_rate_and_a_pause_does_not_count(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    times = [0.0, 2.0, 4.0, 6.0, 106.0, 108.0]  # 5 steps a second, with a pause of 100 s
    lines = [{"phase": "main", "step": 10 * i, "time": at, "metrics": {}} for i, at in enumerate(times)]
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {"probe": {"training": {"steps": 50, "batch": 64}}}
    assert throughput(log, own, "probe") == {"throughput/steps_per_second": 5.0, "throughput/samples_per_second": 320.0}
    assert throughput(MetricLog(tmp_path / "none"), own, "probe") == {}


def test_a_ray_job_is_named_and_its_absence_is_not(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name in ("RAY_JOB_SUBMISSION_ID", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert ray_ids() == {}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "probe-1234"}}))
    assert ray_ids() == {"submission": "probe-1234"}


def test_the_run_of_a_job_shows_the_machine_and_the_cost_of_the_job(tmp_path, empty_store, monkeypatch):
    chain = make_chain(tmp_path / "workspace", empty_store)
    pretend(monkeypatch, chain.store)
    here = runner.stage_process
    ran = {
        "cost": {"cost/worker_seconds": 480.0, "cost/gpu_seconds": 480.0},
        "where": {"ray": {"submission": "prepare-1"}, "hardware": {**hardware(), "gpu": "8 x NVIDIA H100"}},
    }

    @contextmanager
    def there(run, params, scratch, workspace, held):
        with here(run, params, scratch, workspace, held) as process:
            scratch.remote_file.write_text(json.dumps(ran))
            yield process

    monkeypatch.setattr(runner, "stage_process", there)
    done = chain.run("prepare")
    assert done["provenance"]["ray"] == ran["where"]["ray"]
    assert [claim.root for claim in claims(chain.manifest_file("prepare").parent)] == [str(chain.root)]
    run = MlflowClient(chain.store).get_run(done["run"])
    assert (run.data.tags["ray.submission"], run.data.tags["host.gpu"]) == ("prepare-1", "8 x NVIDIA H100")
    assert {name: value for name, value in run.data.metrics.items() if name.startswith("cost/")} == ran["cost"]
