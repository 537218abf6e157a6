"""Cells measured by several processes at once: real ones, with cells that wait for each other, die or are interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import wait_until

from components.errors import ParameterError
from pipelines import presets
from pipelines.errors import StageFailedError
from pipelines.identity.closure import ROOT
from pipelines.schema.section import Section
from pipelines.studies.cells import Cell, Study
from pipelines.studies.engine import open_study, run_study
from pipelines.workspace import Workspace

CELLS = textwrap.dedent(
    '''
    """Cells that leave a trace of who measured them, and when."""

    import os
    import time
    from pathlib import Path


    def start(cell, context):
        context.files.mkdir(parents=True)
        (context.files / "kept.txt").write_text("100")
        return {"sum": 100}


    def add(cell, context):
        import torch

        traces = Path(context.inputs["traces"])
        (traces / f"{cell.settings['number']}.pid").write_text(str(os.getpid()))
        wanted = int((traces / "together").read_text())
        deadline = time.monotonic() + 60
        while len(list(traces.glob("*.pid"))) < wanted:  # of cells that are measured at the same time
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)
        (kept,) = context.needs.values()
        shared = context.shared("twice", lambda: 2)
        total = int((kept / "kept.txt").read_text()) + shared * cell.settings["number"]
        return {"sum": total, "threads": torch.get_num_threads()}


    def die(cell, context):
        if (Path(context.inputs["traces"]) / "die").exists():
            os.kill(os.getpid(), 9)
        return {"sum": 1}


    def linger(cell, context):
        (Path(context.inputs["traces"]) / "lingering").write_text(str(os.getpid()))
        time.sleep(120)
        return {"sum": 1}
    '''
)


class Plan(Section):
    numbers: list[int]


def cells(plan: Plan, params: Any) -> list[Cell]:
    traces = {"traces": "traces"}
    found = [Cell("start", "start", {}, (), {})]
    found += [Cell(f"add/{n}", "add", {"number": n}, (), {}, needs=("start",)) for n in plan.numbers]
    found += [Cell("die", "die", {}, (), {}), Cell("after/die", "start", {"late": True}, (), {}, needs=("die",))]
    twins = [Cell(f"twin/{name}", "start", {"twin": True}, (), {}) for name in ("one", "other")]
    return [Cell(c.key, c.function, c.settings, c.reads, traces, c.needs) for c in [*found, *twins]]


def summarise(plan: Plan, params: Any, results: Any) -> dict[str, Any]:
    return {"total": sum(result["sum"] for result in results.values())}


STUDY = Study(Plan, cells, summarise, code="working_study_cells", threads=1)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/working_study_cells.py").write_text(CELLS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    root = tmp_path / "workspace"
    (root / "studies").mkdir(parents=True)
    (root / "traces").mkdir()
    presets.edit(shutil.copy(ROOT / "params.yaml", root / "params.yaml"), {"compute": {"threads": 2, "device": "cpu"}})
    (root / "studies/toy.yaml").write_text("numbers: [1, 2]\n")
    (root / "traces/together").write_text("2")
    yield Workspace(root, tmp_path / "home")
    sys.modules.pop("working_study_cells", None)


@pytest.mark.heavy
def test_two_processes_measure_at_once_and_a_process_that_dies_costs_its_cell_alone(workspace, tmp_path, capfd):
    traces = workspace.root / "traces"
    first = open_study(
        "toy", workspace, STUDY
    )  # the inputs' digest is taken now: what cells leave there changes nothing
    (traces / "die").write_text("")
    with pytest.raises(StageFailedError, match="2 of 7 cells failed"):
        run_study(first, workers=2)
    told = capfd.readouterr().out
    assert "die: failed: its process ended with code -9" in told
    assert "after/die: failed: needs die" in told
    measured_by = {int((traces / f"{n}.pid").read_text()) for n in (1, 2)}
    assert len(measured_by) == 2  # each waited for the other
    assert os.getpid() not in measured_by
    assert not any(psutil.pid_exists(pid) for pid in measured_by)

    (traces / "die").unlink()
    run_study(first)  # what was left, in this process
    alone = Workspace(workspace.root, tmp_path / "another home")
    kept = (workspace.root / "studies/results/toy.json").read_bytes()
    (traces / "together").write_text("0")
    second = open_study("toy", alone, STUDY)
    object.__setattr__(second, "identities", first.identities)
    run_study(second)
    found = json.loads((workspace.root / "studies/results/toy.json").read_text())
    assert found["summary"]["total"] == 100 + 102 + 104 + 1 + 100 + 100 + 100
    assert found["cells"] == json.loads(kept)["cells"]
    assert {cell["result"]["threads"] for cell in found["cells"] if cell["key"].startswith("add/")} == {1}


def test_no_workers_cost_one_line(workspace):
    with pytest.raises(ParameterError, match="--workers 0: give 1 or more"):
        run_study(open_study("toy", workspace, STUDY), workers=0)


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_scheduler_that_is_killed_or_interrupted(workspace, tmp_path, how):
    script = tmp_path / "code/scheduler.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from pipelines.schema.section import Section
            from pipelines.studies.cells import Cell, Study
            from pipelines.studies.engine import open_study, run_study
            from pipelines.workspace import Workspace

            class Plan(Section):
                numbers: list[int]

            def cells(plan, params):
                return [Cell("linger", "linger", {}, (), {"traces": "traces"})]

            if __name__ == "__main__":
                study = Study(Plan, cells, lambda plan, params, results: {}, code="working_study_cells")
                run_study(open_study("toy", Workspace(Path(sys.argv[1]), Path(sys.argv[2])), study), workers=2)
            """
        )
    )
    path = os.pathsep.join([str(tmp_path / "code"), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, str(script), str(workspace.root), str(tmp_path / "home")],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    lingering = workspace.root / "traces/lingering"
    wait_until(lambda: lingering.exists() and lingering.read_text(), process)
    worker = psutil.Process(int(lingering.read_text()))
    process.send_signal(how)
    process.wait(timeout=100)
    worker.wait(timeout=100)
