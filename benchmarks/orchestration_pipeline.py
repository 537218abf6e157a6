"""The whole pipeline twice on this machine: one stage after the other, and scheduled; wall time side by side, and the bound.

    python benchmarks/orchestration_pipeline.py [--preset smoke] [--threads 1] [--jobs N] [--stages STAGE ...] [--json FILE]
        [--keep FOLDER]

Each run is in a copy of this checkout of its own, without results: first `dvc repro`, then `python -m pipelines repro`. No schedule
can be shorter than the longest path through the graph, or than all work divided by the stages that run at once; both are taken from
the durations of the first run. (Two stages at once slow each other down a little, and the second run may use warm processes, so it
can come nearer than 100 %.) Takes twice as long as the pipeline: half an hour at the default sizes on two cores.
"""

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from orchestration import copy_of_the_checkout, run

from pipelines import presets
from pipelines.params import load
from pipelines.scheduling.durations import Durations
from pipelines.scheduling.places import LocalPlaces
from pipelines.scheduling.plan import Plan, chosen_runs, expected_time


def fresh_checkout(folder: Path, preset: str | None, threads: int | None) -> Path:
    root = copy_of_the_checkout(folder, {} if threads is None else {"compute": {"threads": threads}})
    if preset:
        presets.apply(preset, root)
    return root


def timed(root: Path, *command: str) -> float:
    began = time.monotonic()
    run(root, *command)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", help="smaller sizes, such as smoke (default: those of params.yaml)")
    add("--threads", type=int, help="of each stage (default: compute.threads)")
    add("--jobs", type=int, help="stages at once (default: as many as fit)")
    add("--stages", nargs="*", default=[], help="with what they need (default: all)")
    add("--json", type=Path, help="also write the numbers to this file")
    add("--keep", type=Path, help="leave both copies with their results in this folder")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory(prefix="orchestration-") as folder:
        one, many = (fresh_checkout(Path(folder) / name, options.preset, options.threads) for name in ("one", "many"))
        params = load(one / "params.yaml")
        places = LocalPlaces(params, options.jobs)
        jobs = [] if options.jobs is None else ["--jobs", str(options.jobs)]
        sequential = timed(one, "-m", "dvc", "repro", *options.stages)
        plan = Plan(chosen_runs(options.stages), Durations(one / ".runs", params))
        scheduled = timed(many, "-m", "pipelines", "repro", *jobs, *options.stages)
        same = (one / "dvc.lock").read_bytes() == (many / "dvc.lock").read_bytes()
    bounds = {
        "longest path": sum(map(plan.expected, plan.longest_path())),
        f"work / {places.jobs} at once": sum(map(plan.expected, plan.runs)) / places.jobs,
    }
    found: dict[str, Any] = {
        "stages": len(plan.runs),
        "threads": params.compute.threads,
        "at once": places.jobs,
        "dvc repro": sequential,
        "pipelines repro": scheduled,
        "planned": expected_time(plan, places.fits),
        "bounds": bounds,
        "near": max(bounds.values()) / scheduled,
        "same dvc.lock": same,
    }
    print(f"{found['stages']} stages of {found['threads']} thread(s), {places.jobs} at once")
    for name in ("dvc repro", "pipelines repro", "planned"):
        print(f"{name:26}{found[name]:8.1f} s")
    for name, seconds in bounds.items():
        print(f"at least: {name:16}{seconds:8.1f} s")
    print(f"{100 * found['near']:.0f} % of the bound; dvc.lock is {'the same' if same else 'DIFFERENT'}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
