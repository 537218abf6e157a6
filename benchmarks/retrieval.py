"""The cost of retrieval metrics: ours against the dense formulation of published code.

    python benchmarks/retrieval.py [--json FILE] [--sizes 5000 10000 20000] [--threads 1] [--quick]

    dense   the full similarity matrix, argsorted, and a cumulative sum over the matches: IRRA's utils/metrics.py, without
            its loops over queries and over columns, which need more time and memory
    ours    blocks of scores, compared with those of the relevant pictures and discarded (components.evaluation.retrieval)

Each method runs in its own process, so that peak memory can be attributed; the same seed gives both the same embeddings: N queries
and N pictures of N / 20 people, 512 numbers each. The largest N is about that of ICFG-PEDES (19 848 queries and pictures, 1000
people). Both compute in float32, and matrices of another shape round its last bit differently: two pictures whose scores differ by
no more than that may change places. Ratios are of processor time, which other programs affect less than wall time. Nothing is
asserted. Takes about two minutes on one thread; the dense form of 20 000 needs 15 GB, and is skipped where they are not free.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.threads.settings import thread_settings

if TYPE_CHECKING:
    from torch import Tensor

SIZES, QUICK = (5000, 10000, 20000), (1000,)
METHODS = ("dense", "ours")
METRICS = ("R@1", "R@5", "R@10", "mAP", "mINP")
PER_PERSON, WIDTH, SPREAD = 20, 512, 3.0
DENSE_BYTES = 37
"""Peak bytes per pair of the dense form: similarity 4; order, labels, sums and one temporary 8 each; matches 1."""


def embeddings(size: int) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Queries and gallery (N, 512), and their identities (N,)."""
    import torch

    from components.training.randomness import generator

    random = generator(0, "retrieval benchmark", size)
    people = torch.arange(size) // PER_PERSON
    centres = torch.randn(int(people[-1]) + 1, WIDTH, generator=random)
    sides = []
    for _ in range(2):
        side = torch.randn(size, WIDTH, generator=random)
        sides.append(side.mul_(SPREAD).add_(centres[people]))
    return sides[0], sides[1], people


def dense(queries: "Tensor", gallery: "Tensor", query_ids: "Tensor", gallery_ids: "Tensor") -> dict[str, float]:
    """The metrics from a complete ranking; argsort decides the order of ties."""
    import torch
    from torch.nn.functional import normalize

    similarity = normalize(queries) @ normalize(gallery).T
    order = similarity.argsort(dim=1, descending=True)
    ranked = gallery_ids[order]
    matches = ranked == query_ids[:, None]
    found = matches.cumsum(1)
    row, column = matches.nonzero(as_tuple=True)
    rank, count = column + 1, matches.sum(1)
    precision = torch.zeros(len(queries), dtype=torch.float64)
    precision.index_add_(0, row, found[row, column].double() / rank)
    last = torch.zeros(len(queries), dtype=torch.int64).scatter_reduce_(0, row, rank, "amax")
    first = matches[:, :10].float()
    result = {f"R@{k}": 100 * first[:, :k].amax(1).double().mean().item() for k in (1, 5, 10)}
    result["mAP"] = 100 * (precision / count).mean().item()
    result["mINP"] = 100 * (count.double() / last).mean().item()
    return result


def measure(method: str, size: int, threads: int) -> dict[str, Any]:
    """Run one method in this process: its metrics, seconds, and the peak memory of the process before and after, in MB."""
    import torch

    from components.evaluation.retrieval import retrieval_metrics

    torch.set_num_threads(threads)
    queries, gallery, people = embeddings(size)
    compute = dense if method == "dense" else retrieval_metrics
    compute(queries[:40], gallery[:40], people[:40], people[:40])  # libraries are loaded on first use
    before = _peak()
    started, used = time.perf_counter(), time.process_time()
    found = compute(queries, gallery, people, people)
    return {
        "method": method,
        "size": size,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "peak_mb": _peak(),
        "before_mb": before,
        "metrics": {name: found[name] for name in METRICS},
    }


def _peak() -> float:
    """The largest resident memory of this process so far, MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _free_mb() -> float:
    """Memory that can be used without swapping, in MB; infinite where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("MemAvailable"))


def _run(method: str, size: int, threads: int) -> dict[str, Any] | None:
    """`measure` in a new process; None where the dense form does not fit into memory with a quarter to spare."""
    if method == "dense" and 1.25 * DENSE_BYTES * size**2 / 1e6 > _free_mb():
        return None
    command = [sys.executable, __file__, "--measure", method, str(size), "--threads", str(threads)]
    environment = {**os.environ, **thread_settings(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{method} at {size} failed ({done.returncode}): {done.stderr.strip().splitlines()[-1:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(sizes: list[int], threads: int) -> list[dict[str, Any]]:
    """One row per size: both methods and their ratios."""
    rows = []
    for size in sizes:
        row: dict[str, Any] = {"size": size, **{method: _run(method, size, threads) for method in METHODS}}
        theirs, ours = row["dense"], row["ours"]
        if theirs:
            row["times_faster"] = theirs["cpu_seconds"] / ours["cpu_seconds"]
            row["times_less_memory"] = theirs["peak_mb"] / ours["peak_mb"]
            row["times_less_added"] = _added(theirs) / _added(ours)
            row["largest_difference"] = max(abs(theirs["metrics"][m] - ours["metrics"][m]) / 100 for m in METRICS)
        rows.append(row)
    return rows


def _added(found: dict[str, Any]) -> float:
    """Memory beyond that of the process with the embeddings, in MB; at least 1, the resolution of the measurement."""
    return max(1.0, found["peak_mb"] - found["before_mb"])


def show(rows: list[dict[str, Any]], threads: int) -> None:
    from rich import box
    from rich.table import Table

    from pipelines.terminal.console import TableConsole

    table = Table(
        title=f"Retrieval metrics, {threads} thread(s)", title_justify="left", box=box.SIMPLE, show_lines=True
    )
    for heading in ("N x N", "", "CPU s", "faster", "peak MB", "less", "added MB", "differ by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        theirs, ours = row["dense"], row["ours"]
        cells = [
            f"{row['size']:,}",
            "dense\nours",
            _pair(theirs, ours, lambda found: f"{found['cpu_seconds']:.1f}"),
            f"{row['times_faster']:.1f} x" if theirs else "",
            _pair(theirs, ours, lambda found: f"{found['peak_mb']:,.0f}"),
            f"{row['times_less_memory']:.1f} x" if theirs else "",
            _pair(theirs, ours, lambda found: f"{_added(found):,.0f}"),
            f"{row['largest_difference']:.0e}" if theirs else "",
        ]
        table.add_row(*cells)
    console = TableConsole()
    console.print(table)
    console.print(
        "Peak: resident memory of the whole process, Python and PyTorch included; added: of it, beyond what was there with the "
        "embeddings. Metrics differ by a share of 1. A dash: too little memory is free.",
        style="dim",
        highlight=False,
    )


def _pair(theirs: dict[str, Any] | None, ours: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
    return f"{text(theirs) if theirs else '-'}\n{text(ours)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="queries, and pictures")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default 1)")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK[0]}, as a smoke test")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options.threads)))
        return
    rows = compare(list(QUICK) if options.quick else options.sizes, options.threads)
    show(rows, options.threads)
    if options.json:
        import torch
        from timing import save

        torch.set_num_threads(options.threads)  # as in the measurements
        save(options.json, torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
