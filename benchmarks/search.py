"""The time of a search, its parts, and what an index costs.

    python benchmarks/search.py [--sizes 10000 100000 1000000] [--threads 2] [--json FILE] [--folder FOLDER] [--quick]
    python benchmarks/search.py --libraries [--sizes 1000000] [--threads 2]

    exact          components.search.vectors, in float32 and in float16, memory-mapped from a file
    approximate    components.search.approximate on the float16 file, with the recall that it measured when it was built
    product        torch's plain product of the float32 vectors with the query, and the ten best of it
    flat index     the library's own exact index (faiss.IndexFlatIP; for float16 its scalar quantiser of 16 bits), in memory
    tower          encoding one sentence with the text tower of a ViT-B/16 (open_clip, random weights of that size), shown apart

A client asks for the ten best of one sentence's vector and asks again when it is answered; eight and 32 clients are as many
threads. Times are what a client waits. cpu is the processor time of an answer by all its threads, which other programs on the
machine affect less: the mean, and for one client p95 too; ratios are of the mean. Cold: the file is dropped from the system's cache
and opened anew before each query. Each row runs in a process of its own, so that its memory is its own: what it holds itself, and
what it holds of mapped files, which the system may take back.
`--libraries` compares kinds of approximate indexes instead (benchmarks/search_indexes.py).

The vectors are described in `benchmarks/clustered_vectors.py`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustered_vectors import DIMENSION, queries_file, vectors_file, write_vectors
from search_indexes import KINDS, measure_index

from pipelines.threads.settings import thread_settings

SIZES, QUICK = (10_000, 100_000, 1_000_000), 10_000
CLIENTS = (1, 8, 32)
K = 10
ROWS = ("float32", "float16", "approximate")
SECONDS = 20.0
"""Of asking, per row and number of clients, at most; at least two answers per client."""
COLD = 5
_BLOCK = 20_000


def measure(row: str, size: int, threads: int, folder: Path, seconds: float) -> dict[str, Any]:
    """Measure one row in this process: times in milliseconds, memory in MB."""
    import faiss
    import numpy as np
    import torch

    from components.search.approximate import ApproximateIndex, build
    from components.search.vectors import Vectors

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(1)  # search takes blocks of a large gallery by threads of its own
    faiss.omp_set_num_threads(threads)
    queries = np.load(queries_file(folder, size))
    precision = "float16" if row == "approximate" else row
    file, index = vectors_file(folder, size, precision), folder / f"{size}.index"
    found: dict[str, Any] = {"row": row, "size": size, "megabytes": file.stat().st_size / 1e6}
    if row == "approximate":
        started, used = time.perf_counter(), time.process_time()
        facts = build(index, np.load(file, mmap_mode="r"), queries)
        found |= {
            "facts": facts,
            "build_seconds": time.perf_counter() - started,
            "build_cpu": time.process_time() - used,
        }
        found |= {"index_megabytes": index.stat().st_size / 1e6, "build_peak_mb": _peak()}

    def opened() -> Callable[[Any], Any]:
        vectors = Vectors(np.load(file, mmap_mode="r"))
        searched: Any = ApproximateIndex.open(index, vectors, facts) if row == "approximate" else vectors
        return lambda query: searched.nearest(query[None], K)

    def cold(query: Any) -> None:
        opened()(query)

    dropped = [file, index] if row == "approximate" else [file]
    found["cold"] = _percentiles([_timed(cold, query, dropped) for query in queries[:COLD]])
    search = opened()
    search(queries[0])
    found["warm"] = {str(clients): _asked(search, queries, clients, seconds) for clients in CLIENTS}
    found |= _memory()
    if row != "approximate":
        torch.set_num_threads(threads)
        found["compared"] = _compared(row, file, queries, seconds / 4)
    return found


def _compared(row: str, file: Path, queries: Any, seconds: float) -> dict[str, Any]:
    """The library's flat index and the plain product, one client, in the same process as the row."""
    return {
        "flat index": _asked(_flat_index(row, file), queries, 1, seconds),
        **({"product": _asked(_product(file), queries, 1, seconds)} if row == "float32" else {}),
    }


def _flat_index(row: str, file: Path) -> Callable[[Any], Any]:
    import faiss
    import numpy as np

    vectors = np.load(file, mmap_mode="r")
    flat: Any = (
        faiss.IndexFlatIP(DIMENSION)
        if row == "float32"
        else faiss.IndexScalarQuantizer(DIMENSION, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    )
    flat.train(np.asarray(vectors[:1000], np.float32))
    for begin in range(0, len(vectors), _BLOCK):
        flat.add(np.asarray(vectors[begin : begin + _BLOCK], np.float32))
    return lambda query: flat.search(query[None], K)


def _product(file: Path) -> Callable[[Any], Any]:
    import numpy as np
    import torch

    vectors = torch.from_numpy(np.load(file))
    return lambda query: (vectors @ torch.from_numpy(query)).topk(K)


def tower(threads: int, seconds: float) -> dict[str, Any]:
    """One sentence in the text tower of a ViT-B/16, and the rate at which pictures and sentences are embedded."""
    import numpy as np
    import torch
    from PIL import Image

    from components.gadms.model import DualEncoder
    from components.search.encoders import PersonEncoder

    torch.set_num_threads(threads)
    model = DualEncoder.create("ViT-B-16-quickgelu", image_size=(384, 128))
    encoder = PersonEncoder(model, "ViT-B-16", "")
    sentences = [f"a woman number {number} in a red coat with a black bag over her shoulder" for number in range(64)]
    encoder.sentences(sentences[:2])
    alone = _asked(lambda number: encoder.sentences([sentences[int(number)]]), np.arange(64), 1, seconds)
    started = time.perf_counter()
    encoder.sentences(sentences)
    rate = len(sentences) / (time.perf_counter() - started)
    pictures = [Image.new("RGB", (128, 384), (number, 60, 90)) for number in range(16)]
    encoder.pictures(pictures[:2])
    started = time.perf_counter()
    encoder.pictures(pictures)
    return {
        "row": "tower",
        "sentence": alone,
        "sentences_per_second": rate,
        "pictures_per_second": len(pictures) / (time.perf_counter() - started),
        **_memory(),
    }


def _asked(search: Callable[[Any], Any], queries: Any, clients: int, seconds: float) -> dict[str, float]:
    """Percentiles of the time to an answer, processor time of one, both in milliseconds, and answers per second."""
    times: list[float] = []
    used_by_one: list[float] = []  # processor time, which is an answer's own only where there is one client
    began, used = time.perf_counter(), time.process_time()

    def client(number: int) -> None:
        done = 0
        while done < 2 or (time.perf_counter() - began < seconds and done < 200):
            asked, used_before = time.perf_counter(), time.process_time()
            search(queries[(number + done * clients) % len(queries)])
            times.append(time.perf_counter() - asked)
            used_by_one.append(time.process_time() - used_before)
            done += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = 1000 * (time.process_time() - used) / len(times)
    alone = {"cpu_p95": _percentiles(used_by_one)["p95"]} if clients == 1 else {}
    return {**_percentiles(times), "cpu": cpu, **alone, "per_second": len(times) / (time.perf_counter() - began)}


def _timed(search: Callable[[Any], Any], query: Any, dropped: list[Path]) -> float:
    """The seconds of a search whose files are not in the system's cache."""
    for path in dropped:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    search(query)
    return time.perf_counter() - began


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * each for each in seconds)
    return {
        "p50": statistics.median(ordered),
        **{f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (95, 99)},
        "answers": len(ordered),
    }


def _memory() -> dict[str, float]:
    """Resident memory, MB: of this process itself, and of files that it has mapped."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        return {"own_mb": _peak(), "mapped_mb": 0.0}
    own, mapped = (int(lines[key].split()[0]) * 1024 / 1e6 for key in ("RssAnon", "RssFile"))
    return {"own_mb": own, "mapped_mb": mapped}


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _in_new_process(row: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    own = ["--row", row, "--sizes", str(size), "--threads", str(options.threads)]
    own += ["--folder", str(options.folder), "--seconds", str(options.seconds)]
    environment = {**os.environ, **thread_settings(options.threads)}
    done = subprocess.run(
        [sys.executable, __file__, *own], stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(rows: list[dict[str, Any]]) -> str:
    """Lines for people; times in milliseconds."""
    lines = [
        f"{'vectors':>10}  {'':22} {'clients':>7} {'p50':>8} {'p95':>8} {'p99':>8} {'cpu':>8} {'cpu p95':>8} {'per s':>8}"
    ]

    def add(size: str, what: str, clients: str, one: dict[str, float]) -> None:
        times = " ".join(f"{one[name]:>8.1f}" for name in ("p50", "p95", "p99"))
        alone = f"{one['cpu_p95']:>8.1f}" if "cpu_p95" in one else 8 * " "
        rate = f"{one['cpu']:>8.1f} {alone} {one['per_second']:>8.1f}" if "per_second" in one else ""
        lines.append(f"{size:>10}  {what:22} {clients:>7} {times} {rate}".rstrip())

    def note(text: str) -> None:
        lines.append(f"{'':10}  {text}")

    for row in rows:
        if row["row"] == "tower":
            add("", "tower, one sentence", "1", row["sentence"])
            note(
                f"{row['sentences_per_second']:.1f} sentences or {row['pictures_per_second']:.1f} pictures embedded per second"
            )
            continue
        for clients, one in row["warm"].items():
            add(f"{row['size']:,}", row["row"], clients, one)
        add("", f"{row['row']}, cold", "1", row["cold"])
        for name, one in row.get("compared", {}).items():
            add("", name, "1", one)
            note(f"{row['row']} / {name} = {row['warm']['1']['cpu'] / one['cpu']:.2f}")
        note(
            f"memory {row['own_mb']:.0f} MB and {row['mapped_mb']:.0f} MB of mapped files; vectors {row['megabytes']:.0f} MB"
        )
        if "facts" in row:
            note(f"built in {row['build_seconds']:.0f} s, of which processor time {row['build_cpu']:.0f} s")
            note(f"index {row['index_megabytes']:.0f} MB, {json.dumps(row['facts'])}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+")
    add("--threads", type=int, default=2)
    add("--rows", nargs="+", choices=("tower", *ROWS, *KINDS), help="default: all of the table, or of --libraries")
    add("--seconds", type=float, default=SECONDS, help="of asking, per row and number of clients")
    add("--folder", type=Path, help="keeps the vectors here (default: a temporary folder)")
    add("--json", type=Path)
    add("--quick", action="store_true", help="10,000 vectors, and a second of asking")
    add("--libraries", action="store_true", help="compare kinds of approximate indexes")
    add("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.seconds = options.sizes or [QUICK], 1.0
    if options.row:
        print(json.dumps(_row(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        options.folder.mkdir(parents=True, exist_ok=True)
        rows = _rows(options)
    if not options.libraries:
        print(table(rows))


def _row(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one row, in this process."""
    if options.row == "tower":
        return tower(options.threads, options.seconds)
    if options.row in KINDS:
        return measure_index(options.row, options.sizes[0], options.threads, options.folder)
    return measure(options.row, options.sizes[0], options.threads, options.folder, options.seconds)


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every row in a process of its own; print and keep each when it is done."""
    chosen = options.rows or (KINDS if options.libraries else ("tower", *ROWS))
    sizes = options.sizes or SIZES
    rows: list[dict[str, Any]] = []
    for number, size in enumerate(sizes):
        write_vectors(options.folder, size)
        for row in chosen:
            if row == "tower" and number:
                continue
            rows.append(_in_new_process(row, size, options))
            print(json.dumps(rows[-1]) if options.libraries else table(rows[-1:]), flush=True)
            if options.json:
                environment = {"threads": options.threads, "cores": os.cpu_count(), "machine": platform.machine()}
                options.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
