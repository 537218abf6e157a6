"""`make gpu`: every path of its script that a CPU can run, at toy sizes; with a GPU, its checks at full size (pytest -m gpu)."""

import gc
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.generating.pool import gpu_share

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/gpu.py"
NAMES = ("attention", "transformer", "memory", "fsdp", "training", "generation", "card")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        loaded = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
        sys.modules["timing"].gc = SimpleNamespace(collect=lambda: 0)  # before each timed call; most of the toys' time
        yield loaded
    finally:
        sys.modules["timing"].gc = gc
        sys.path.remove(str(SCRIPT.parent))


def require_whole(rows):
    assert rows
    assert [row for row in rows if row["holds"] is False] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_check_runs_on_a_cpu_at_toy_sizes(script, name):
    assert tuple(script.CHECKS) == NAMES
    rows = script.CHECKS[name](torch.device("cpu"), script.TOY)
    require_whole(rows)
    if name != "memory":  # whose numbers are of CUDA
        assert any(row["holds"] for row in rows)


@pytest.mark.heavy
@pytest.mark.ray
def test_two_workers_draw_the_bytes_of_one_process(script):
    require_whole(script.CHECKS["generation"](torch.device("cpu"), replace(script.TOY, workers=2, pictures=8)))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_each_check_holds_on_a_gpu_at_full_size(script, name):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    require_whole(script.CHECKS[name](torch.device("cuda:0"), script.FULL))


def test_every_backend_of_the_script_is_one_of_diffusers(script):
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert {*script.FULL.backends, *script.TOY.backends} <= {name.value for name in AttentionBackendName}


def test_a_wrong_attention_does_not_hold(script, monkeypatch):
    scope = script.CHECKS["attention"].__globals__
    attend = scope["temperature_adjusted_attention"]

    def stronger(query, key, value, gamma, *args, **named):
        return attend(query, key, value, 2 * gamma, *args, **named)

    monkeypatch.setitem(scope, "temperature_adjusted_attention", stronger)
    rows = script.CHECKS["attention"](torch.device("cpu"), replace(script.TOY, backends=("native",)))
    assert any(row["holds"] is False for row in rows)


def test_a_check_that_fails_or_comes_too_late_is_a_row_and_costs_no_other(script, monkeypatch, tmp_path, capsys):
    def broken(device, sizes):
        raise RuntimeError("out of memory")

    found = [script.row("speed", 1.25, "x")]
    scope = script.run.__globals__
    monkeypatch.setitem(scope, "CHECKS", {"broken": broken, "whole": lambda device, sizes: found})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--toy", "--json", str(tmp_path / "gpu.json")])
    assert script.main() == 1
    written = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["check"] for row in written] == ["broken", "whole", "all"]
    assert written[0]["note"] == "RuntimeError: out of memory"
    assert "1.25" in capsys.readouterr().out
    late = script.run(torch.device("cpu"), script.TOY, seconds=-1)
    assert [row["what"] for row in late] == ["left out", "left out", "time"]


def test_without_a_gpu_the_script_says_so_in_one_line(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--json", str(tmp_path / "gpu.json")])
    assert script.main() == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("workers", "gpus", "share"),
    [(1, 1, 1), (2, 1, 0.5), (3, 2, 0.5), (4, 3, 0.5), (2, 8, 1), (5, 2, 1 / 3), (2, 0, 1)],
)
def test_workers_share_the_gpus_of_this_machine_where_they_are_more(monkeypatch, workers, gpus, share):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert gpu_share(workers, gpus) == pytest.approx(share)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert gpu_share(workers, gpus) == 1
