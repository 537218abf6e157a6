"""The scheduler on a real Ray cluster with fewer places than stages."""

import json
import subprocess
import sys

import pytest

from pipelines import graph
from pipelines.identity.closure import ROOT
from pipelines.scratch.folder import folder_stem

SECONDS = 4.0


@pytest.mark.heavy
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_more_stages_than_places_never_wait_for_resources_and_all_finish(tmp_path):
    """The real graph, each stage a wait, trainings of two workers in placement groups, on four nodes of one CPU.

    A stage that was submitted beside too many others would wait for at least one of them to end.
    """
    for run in graph.all_runs():
        folder = tmp_path / f"{folder_stem(run.address)}-{'0' * 16}"
        folder.mkdir()
        (folder / "DONE.json").write_text(json.dumps({"cost": {"cost/seconds": SECONDS}, "provenance": None}))
    command = [sys.executable, "benchmarks/orchestration_cluster.py", "--scale", "1", "--home", str(tmp_path)]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "found.json")], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["bundles"] < found["stages"] == len(graph.all_runs())
    assert found["longest wait for resources"] < SECONDS
    assert found["measured"] < found["one after the other"]
