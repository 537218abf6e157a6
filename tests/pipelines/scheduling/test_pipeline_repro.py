"""The command as a whole, with nothing to run: what it prints, refuses and leaves alone."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import clean_environment
from small_projects import RATE

from components.errors import ParameterError
from pipelines.commands import repro as command
from pipelines.errors import InfrastructureError
from pipelines.identity.closure import ROOT
from pipelines.scheduling.checkout_lock import checkout_lock
from pipelines.scheduling.pipeline_repro import ReproOptions, repro

EVERYTHING = ("taca_train", "probe")
HEAVY = ("mlflow", "torch", "ray", "transformers", "pandas")
NO_OP = f"""
import sys
from pipelines.__main__ import main
code = main(["--workspace", sys.argv[1], "repro", *{EVERYTHING}])
print(code, sorted(set({HEAVY}) & set(sys.modules)))
"""


def test_nothing_to_do_is_one_line_and_loads_nothing_heavy(finished):
    before = finished.lock
    command = [sys.executable, "-c", NO_OP, str(finished.root)]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["6 stages up to date", "0 []"]
    assert done.stderr == ""
    assert finished.lock == before


def test_a_dry_run_prints_the_whole_plan_into_a_pipe_and_writes_nothing(finished, capsys, monkeypatch):
    for of_terminals in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(of_terminals, raising=False)
    finished.edit(*RATE)
    files = {file: file.stat().st_mtime_ns for file in finished.root.rglob("*") if file.is_file()}
    assert repro(finished.workspace, ReproOptions(stages=EVERYTHING, dry=True, jobs=2)) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if "0.0065" in line)
    assert "base_model.autoencoder.learning_rate: 0.006 -> 0.0065" in line
    assert "after base_model, taca_cache" in text
    assert "unchanged" in next(line for line in text.splitlines() if "probe" in line)
    assert "longest path: 3:00: base_model (1:00) -> taca_cache (1:00) -> taca_train@" in text
    assert "at most 2 stages at once" in text
    assert "1:00 is assumed of stages that have not finished here: base_model, taca_cache, taca_train@" in text
    assert {file: file.stat().st_mtime_ns for file in finished.root.rglob("*") if file.is_file()} == files


def test_two_at_once_and_what_does_not_exist_are_refused_in_one_line(finished, monkeypatch):
    with checkout_lock(finished.root, wait=False):
        with pytest.raises(InfrastructureError, match=r"runs `pipelines repro` in .*: wait for it, say --wait"):
            repro(finished.workspace, ReproOptions(stages=EVERYTHING))
        assert repro(finished.workspace, ReproOptions(stages=EVERYTHING, dry=True)) == 0
        monkeypatch.setenv("PIPELINES_LOCK_TIMEOUT", "0.1")
        with pytest.raises(InfrastructureError, match="PIPELINES_LOCK_TIMEOUT"):
            repro(finished.workspace, ReproOptions(stages=EVERYTHING, wait=True))
    for unknown in ("taca", "pipelines/sweeps/dvc.yaml:sweep@gadms"):
        with pytest.raises(ParameterError, match=unknown):
            repro(finished.workspace, ReproOptions(stages=[unknown]))
    monkeypatch.setenv("PIPELINES_COMPUTE__THREADS", "7")
    with pytest.raises(ParameterError, match="DVC does not see the environment"):
        repro(finished.workspace, ReproOptions(stages=EVERYTHING))


def test_a_checkout_whose_code_is_not_installed_runs_its_own_code(tmp_path, monkeypatch):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__main__.py").touch()
    monkeypatch.chdir(ROOT)
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    options = parser.parse_args(["--force", "--single-item", "--jobs", "3", "probe", "prepare"])
    options.workspace = tmp_path
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append((program, words)) or sys.exit(0))
    with pytest.raises(SystemExit):
        command.run(options)
    ((program, words),) = started
    assert (program, words[:4]) == (sys.executable, [sys.executable, "-m", "pipelines", "repro"])
    again = parser.parse_args(words[4:])
    again.workspace = tmp_path
    assert again == options
    assert Path.cwd() == tmp_path
