"""Stages as jobs of a cluster that asks for a token: with it, without it, with a wrong one; and where the token is to be found."""

import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ray_clusters import RayCluster, as_job, running

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(600)]

TOKEN = "0f9c2f7e5a4b4d1e9c3a7b1d2e8f6a50"


class GuardedCluster(RayCluster):
    """One node, which asks for a token."""

    def start(self) -> None:
        self.start_head()

    def _living(self) -> int:
        """Nodes that run, asked by hand: Ray's client keeps the token that a process has first read."""
        asked = urllib.request.Request(
            f"{self.address}/api/v0/nodes?detail=1", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return answer.read().count(b'"ALIVE"')
        except OSError:
            return 0


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = Path(os.path.realpath("/tmp")) / f"guarded-{os.getpid()}"  # sockets below it: its path must be short
    folder.mkdir()
    yield from running(folder, GuardedCluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)


def files_below(*folders):
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def test_the_cluster_itself_asks_for_the_token(guarded):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{guarded.address}/api/v0/nodes", timeout=5)
    assert refused.value.code == 401


def test_with_the_token_a_job_runs_and_the_token_is_written_nowhere(with_people, guarded, tmp_path):
    storage = tmp_path / "storage"
    storage.mkdir()
    place = as_job(with_people, guarded, storage, RAY_AUTH_TOKEN=TOKEN)
    finished = place.run("probe")
    assert finished.returncode == 0, finished.stderr
    assert TOKEN not in finished.stdout + finished.stderr
    (run,) = place.tracked("probe")
    assert (run.info.status, "ray.submission" in run.data.tags) == ("FINISHED", True)
    written = files_below(place.root, storage)
    assert place.root / "mlflow.db" in written
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "credentials", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32}], ids=["none", "wrong"]
)
def test_without_the_right_token_a_stage_ends_in_one_line_that_says_so(with_people, guarded, tmp_path, credentials):
    storage = tmp_path / "storage"
    storage.mkdir()
    place = as_job(with_people, guarded, storage)
    refused = place.run("probe", **credentials)
    assert refused.returncode == 75, refused.stderr
    assert "asks for its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "f" * 32 not in refused.stdout + refused.stderr
    assert not (storage / "runs").exists()
