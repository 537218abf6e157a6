"""The savings and the overhead of sweeps.

    python benchmarks/sweeps.py --asha        16 configurations with ASHA against the same 16 at full length (about 20 minutes)
    python benchmarks/sweeps.py --overhead    seconds of a trial beyond the bare training function (about 3 minutes)

Both run `python -m pipelines sweep` in a workspace of their own, one thread per trial; --asha two trials at once, --overhead one.
Trial-seconds are wall time of the processes of trials, including their start: nothing else should run meanwhile. The two sweeps of
--asha have separate scratch roots and share only the stages that all trials share; seed noise is the standard deviation over three
seeds of the best configuration of the full sweep. Results are printed, and added to benchmarks/results/sweeps.json.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
SPACES = ROOT / "benchmarks" / "spaces"
RESULTS = ROOT / "benchmarks" / "results" / "sweeps.json"
SAMPLES, SEEDS, MORE = 16, 3, 6


class Place:
    """A workspace with its own scratch root and tracking store."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        (folder / "data" / "raw").mkdir(parents=True)
        shutil.copy(ROOT / "params.yaml", folder)

    @property
    def home(self) -> Path:
        return self.root / "home"

    def sweep(self, space: str, *options: str, folder: Path = SPACES) -> tuple[dict[str, Any], float]:
        """Run a sweep; return its results and its wall time. Its output is shown."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIPELINES_", "MLFLOW_", "RAY_"))}
        store = {"PIPELINES_HOME": str(self.home), "MLFLOW_TRACKING_URI": f"sqlite:///{self.root / 'mlflow.db'}"}
        command = [sys.executable, "-m", "pipelines", "--workspace", str(self.root), "sweep", space]
        started = time.monotonic()
        subprocess.run([*command, "--folder", str(folder), *options], cwd=ROOT, env={**kept, **store}, check=True)
        seconds = time.monotonic() - started
        results = json.loads((self.root / "results" / "sweeps" / f"{space}.json").read_text(encoding="utf-8"))
        return results, seconds


def asha(folder: Path) -> dict[str, Any]:
    """Run both sweeps, and the best configuration of the full one with other seeds."""
    samples, two = ["--samples", str(SAMPLES)], ["--workers", "2"]
    full_place, asha_place = Place(folder / "full"), Place(folder / "asha")
    full, _ = full_place.sweep("asha", *samples, *two, "--no-scheduler")
    for scratch in full_place.home.iterdir():  # the stages that all trials share, and no result of a trial
        if (scratch / "DONE.json").is_file() and not scratch.name.startswith("gadms_finetune"):
            shutil.copytree(scratch, asha_place.home / scratch.name)
    stopped, _ = asha_place.sweep("asha", *samples, *two)
    best = full["trials"][full["best"]]
    space = yaml.safe_load((SPACES / "asha.yaml").read_text(encoding="utf-8"))
    (folder / "spaces").mkdir()
    seeds = {**space, "points": [best["values"]], "scheduler": None}
    (folder / "spaces" / "seeds.yaml").write_text(yaml.safe_dump(seeds, sort_keys=False), encoding="utf-8")
    repeated, _ = full_place.sweep("seeds", "--samples", "1", "--seeds", str(SEEDS), *two, folder=folder / "spaces")
    (values,) = (objective["values"] for objective in repeated["trials"][0]["objectives"].values())
    found = {name: _sum(results) for name, results in (("full", full), ("asha", stopped))}
    noise = statistics.stdev(values)
    return {
        **found,
        "share_of_seconds": found["asha"]["seconds"] / found["full"]["seconds"],
        "share_of_steps": found["asha"]["steps"] / found["full"]["steps"],
        "seeds_of_the_best": values,
        "seed_noise": noise,
        "behind_by": found["full"]["best"] - found["asha"]["best"],
        "within_noise": found["full"]["best"] - found["asha"]["best"] <= noise,
    }


def _sum(results: Mapping[str, Any]) -> dict[str, Any]:
    (name,) = (objective["name"] for objective in results["objectives"])
    best = results["trials"][results["best"]]
    return {
        "best": best["objectives"][name]["mean"],
        "trial": best["number"],
        "seconds": results["seconds"],
        "steps": sum(max((step for step, _ in trial["reports"]), default=0) for trial in results["trials"])
        if any(trial["reports"] for trial in results["trials"])
        else SAMPLES * _full_steps(),
        "counts": results["counts"],
    }


def _full_steps() -> int:
    space = yaml.safe_load((SPACES / "asha.yaml").read_text(encoding="utf-8"))
    return int(space["base"]["gadms_finetune"]["training"]["steps"])


def overhead(folder: Path) -> dict[str, Any]:
    """Seconds per trial of the bare function, the stage, the process of the trial and the sweep; and once per sweep."""
    place = Place(folder / "overhead")
    place.sweep("overhead", "--samples", "1")  # computes the stages that all trials share
    _, once = place.sweep("overhead", "--samples", "2")
    results, several = place.sweep("overhead", "--samples", str(2 + MORE))
    last = results["trials"][-MORE:]
    trial = (several - once) / (MORE - 1)
    return {
        "bare_seconds": _bare(place, last[-1]),
        "stage_seconds": statistics.mean(trial["stages"][-1]["seconds"] for trial in last),
        "process_seconds": statistics.mean(trial["seconds"] for trial in last),
        "sweep_seconds": trial,
        "once_seconds": once - trial,
        "trials": MORE,
    }


def _bare(place: Place, trial: Mapping[str, Any]) -> float:
    """Seconds of the training function of the stage in this process, with libraries loaded: the minimum of three."""
    import torch

    from components.training.context import LocalContext
    from pipelines import params
    from pipelines.stages import probe

    torch.set_num_threads(1)
    (folder,) = place.home.glob(f"sweeps/*/trials/{trial['number']:03d}/seed-0")
    settings, inputs = params.load(folder / "params.yaml"), {"people": folder / "data" / "people"}
    seconds = []
    for repetition in range(3):
        outputs = {"probe": place.root / f"bare-{repetition}"}
        context: Any = LocalContext(seed=0, folder=place.root / f"checkpoints-{repetition}")
        started = time.monotonic()
        probe.run(settings, inputs, outputs, context)
        seconds.append(time.monotonic() - started)
    return min(seconds)


def show(title: str, rows: Sequence[tuple[str, str]]) -> None:
    from rich import box
    from rich.table import Table

    from pipelines.terminal.console import TableConsole

    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    TableConsole().print(table)


def show_asha(found: Mapping[str, Any]) -> None:
    full, stopped = found["full"], found["asha"]
    rows = [
        ("best of the full sweep", f"{full['best']:.2f} (trial {full['trial']})"),
        ("best with ASHA", f"{stopped['best']:.2f} (trial {stopped['trial']})"),
        ("behind by", f"{found['behind_by']:.2f}"),
        (f"seed noise of the best ({SEEDS} seeds)", f"{found['seed_noise']:.2f}"),
        ("trial-seconds", f"{stopped['seconds']:.0f} of {full['seconds']:.0f} = {found['share_of_seconds']:.0%}"),
        ("training steps", f"{stopped['steps']} of {full['steps']} = {found['share_of_steps']:.0%}"),
        ("trials stopped early", f"{stopped['counts']['stopped']} of {SAMPLES}"),
    ]
    show(f"ASHA against full length, {SAMPLES} configurations (val R@1, %)", rows)


def show_overhead(found: Mapping[str, Any]) -> None:
    rows = [
        ("training function alone, warm", f"{found['bare_seconds']:.1f} s"),
        ("as a stage (process, imports, MLflow)", f"{found['stage_seconds']:.1f} s"),
        ("process of the trial", f"{found['process_seconds']:.1f} s"),
        ("trial in a sweep", f"{found['sweep_seconds']:.1f} s"),
        ("added to the function alone", f"{found['sweep_seconds'] - found['bare_seconds']:.1f} s"),
        ("added to the stage", f"{found['sweep_seconds'] - found['stage_seconds']:.1f} s"),
        ("once per sweep (Ray, shared stages restored, summary)", f"{found['once_seconds']:.1f} s"),
    ]
    show(f"Seconds of a trial, mean of {found['trials']}, one at a time", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--asha", action="store_true", help="early stopping against full length")
    parser.add_argument("--overhead", action="store_true", help="overhead of a trial")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="file of results")
    options = parser.parse_args()
    if not (options.asha or options.overhead):
        parser.error("say --asha, --overhead, or both")
    known = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else {}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory(prefix="sweeps-") as folder:
        if options.asha:
            known["asha"] = {**asha(Path(folder)), **machine}
            show_asha(known["asha"])
        if options.overhead:
            known["overhead"] = {**overhead(Path(folder)), **machine}
            show_overhead(known["overhead"])
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
