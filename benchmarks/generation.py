"""The throughput of the default checkpoint in pictures per second: TACA off and on, with one worker and with two.

    python benchmarks/generation.py [--json FILE] [--pictures 192] [--rounds 2] [--model models/base.json]

Workers are the actors of `python -m pipelines generate`, one CPU thread each (or one GPU). The clock starts when every worker has
drawn its first shard, so it excludes loading the model and starting Ray. Nothing is asserted. Takes about two minutes.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from timing import describe, save

from components.settings import to_json
from pipelines import params
from pipelines.engine.ray_cluster import set_ray_defaults, start_ray
from pipelines.generating.painter import DrawSettings
from pipelines.generating.plan import plan
from pipelines.generating.pool import draw
from pipelines.generating.prompts import Prompt
from pipelines.params import Parameters
from pipelines.schema.running import Compute
from pipelines.terminal.console import TableConsole

ROOT = Path(__file__).resolve().parent.parent
WORKERS = (1, 2)


def measure(drawing: DrawSettings, pictures: int, compute: Compute) -> dict[str, Any]:
    """Draw `pictures`, and before them one shard per worker that is not counted; a shard is one batch."""
    prompts = [Prompt(str(number), f"a woman in a red coat, number {number}") for number in range(pictures)]
    extra = [Prompt(f"first {number}", "a man in a blue coat") for number in range(compute.workers * drawing.batch)]
    shards = plan([*extra, *prompts], seed=0, images_per_prompt=1, shard_size=drawing.batch)
    finished, active = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for shard, drawn in draw(drawing, Path(folder), shards, compute):
            finished.append((time.perf_counter(), len(shard.pictures)))
            active = drawn.active_steps
    counted = finished[compute.workers :]
    seconds = counted[-1][0] - finished[compute.workers - 1][0]
    drawn_then = sum(count for _, count in counted)
    return {"pictures": drawn_then, "seconds": seconds, "rate": drawn_then / seconds, "active_steps": active}


def drawing_of(model: Path, chosen: Parameters, batch: int, taca: dict[str, Any] | None) -> DrawSettings:
    """The settings of params.yaml, without guidance."""
    return DrawSettings(
        model=model.absolute(),
        adapters=(),
        taca=taca,
        height=chosen.pictures.height,
        width=chosen.pictures.width,
        steps=chosen.taca_generate.steps,
        guidance=1.0,
        embedded_guidance=3.5,
        dtype="fp32",
        batch=batch,
    )


def show(rows: list[dict[str, Any]], device: torch.device, console: TableConsole) -> None:
    """Print the table."""
    title = " · ".join(f"{key} {value}" for key, value in describe(device).items() if key != "clock")
    table = Table(title=f"{title} · wall time", title_justify="left")
    for heading in (
        "workers",
        "TACA",
        "pictures",
        "seconds",
        "pictures / second",
        "relative to TACA off",
        "relative to 1 worker",
    ):
        table.add_column(heading, justify="left" if heading == "TACA" else "right")
    for row in rows:
        taca = f"on at {row['active_steps']} of {row['steps']} steps" if row["active_steps"] else "off"
        numbers = (f"{row['rate']:.2f}", f"{row['to_off']:.2f}", f"{row['to_one_worker']:.2f}")
        table.add_row(str(row["workers"]), taca, str(row["pictures"]), f"{row['seconds']:.1f}", *numbers)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--model", type=Path, default=ROOT / "models/base.json", help="a model reference")
    parser.add_argument("--pictures", type=int, default=192, help="pictures per row (default 192)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of each row; the best is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = params.load(ROOT / "params.yaml")
    taca = to_json(chosen.taca)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    set_ray_defaults()
    import ray

    start_ray(Compute(workers=max(WORKERS), threads=1))
    best: dict[tuple[int, bool], dict[str, Any]] = {}
    try:
        for _ in range(options.rounds):  # in turns, so that the state of the machine affects all alike
            for workers in WORKERS:
                for on in (False, True):
                    drawing = drawing_of(options.model, chosen, options.batch, taca if on else None)
                    found = measure(drawing, options.pictures, Compute(workers=workers, threads=1))
                    best[workers, on] = max(best.get((workers, on), found), found, key=lambda each: each["rate"])
    finally:
        ray.shutdown()
    rows = [
        {
            "workers": workers,
            "taca": on,
            "steps": chosen.taca_generate.steps,
            **found,
            "to_off": found["rate"] / best[workers, False]["rate"],
            "to_one_worker": found["rate"] / best[1, on]["rate"],
        }
        for (workers, on), found in best.items()
    ]
    show(rows, device, TableConsole())
    if options.json:
        save(options.json, device, rows)


if __name__ == "__main__":
    main()
