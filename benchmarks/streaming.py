"""The time and memory that training batches of a large corpus take: lists against a stream.

    python benchmarks/streaming.py [--json FILE] [--pairs 50000 200000] [--batch 256] [--readers 0 2] [--lists]
        [--stream-only]

    prepare   WebPerson's layout (Parquet shards) into the internal form: every picture decoded, digested and written
    lists     retrieval training without `streaming`: the manifest, all captions tokenised, pictures by random access
    stream    one epoch of batches, read in the training process (readers 0) or ahead of it by that many processes of Ray Data

Pairs are pictures of 16 x 8 pixels with a sentence each, so that decoding is cheap and the pipeline itself is measured. Each
measurement runs in its own process, so that peak memory can be attributed; with readers, their memory is the sum of what each
holds alone. Reported are wall time, and the processor time of the process itself. Nothing is asserted. The corpora are made in a
temporary folder, 200 000 pairs in about a minute on one core.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, SIZE, PER_FILE = 256, (16, 8), 20_000
WORDS = (
    "a",
    "the",
    "man",
    "woman",
    "wears",
    "in",
    "red",
    "blue",
    "black",
    "white",
    "coat",
    "jacket",
    "jeans",
    "shoes",
    "bag",
    "and",
)


def make(folder: Path, pairs: int) -> None:
    """Write a corpus in WebPerson's layout. All pictures differ, as duplicates would be dropped."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    (folder / "data").mkdir(parents=True)
    random = np.random.default_rng(pairs)
    files = -(-pairs // PER_FILE)
    for number in range(files):
        count = min(PER_FILE, pairs - number * PER_FILE)
        pixels = random.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)
        words = random.integers(0, len(WORDS), (2, count, 16))
        images = []
        for picture in pixels:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG", compress_level=1)
            images.append({"bytes": file.getvalue(), "path": None})
        captions = [[" ".join(WORDS[i] for i in row) for row in side] for side in words.tolist()]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = {
            "image": pa.array(images, kind),
            "image_path": [""] * count,
            "caption1": captions[0],
            "caption2": captions[1],
        }
        pq.write_table(pa.table(table), folder / f"data/train-{number:05d}-of-{files:05d}.parquet", row_group_size=100)


def prepare(folder: Path, pairs: int) -> int:
    """Prepare the corpus; return the number of pictures."""
    from components.persons.published.readers import find_dataset
    from components.persons.published.validation import ValidatedRecords
    from components.persons.shards import write_records

    validation = ValidatedRecords(find_dataset(folder / "web"))
    write_records(validation, folder / "people")
    return validation.report.good


def lists(folder: Path, batch: int) -> int:
    """Read one epoch from lists; return the number of captions."""
    import torch

    from components.gadms.tokenizer import CaptionTokenizer
    from components.persons.shards import PersonDataset

    dataset = PersonDataset(folder / "people")
    rows = dataset.rows("train", "long")
    ids = CaptionTokenizer()(rows.column("caption"))
    image_ids = rows.column("image_id")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    for part in order.split(batch):
        dataset.pixels([image_ids[row] for row in part.tolist()], *SIZE)
        ids[part].sum()
    return len(rows)


def stream(folder: Path, batch: int, readers: int) -> tuple[int, float, float]:
    """Captions of one epoch, seconds from the first batch on (readers start slowly), and peak MiB that the readers hold alone."""
    from components.gadms.tokenizer import CaptionTokenizer
    from components.persons.streaming.corpus import open_corpus
    from components.persons.streaming.sample_reader import SampleReader
    from pipelines.schema.running import Compute
    from pipelines.streaming.read_ahead import ReadAhead

    prepared = folder / "people"
    corpus = open_corpus(prepared if prepared.is_dir() else folder / "web")
    reader = SampleReader(corpus, CaptionTokenizer(), size=SIZE, batch_size=batch, seed=0)
    steps, held = len(reader) // batch, 0.0
    with ReadAhead(reader, steps=steps, readers=readers, compute=Compute()) as ahead:
        ahead.read(0)
        begin = time.perf_counter()
        for step in range(1, steps):
            ahead.read(step)
            if readers and step % 50 == 0:
                held = max(held, _held_by_readers())
    return (steps - 1) * batch, time.perf_counter() - begin, held


def _held_by_readers() -> float:
    import psutil

    held = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "_Reading" in " ".join(process.cmdline()):
                held += process.memory_full_info().uss
        except psutil.Error:
            continue
    return held / 2**20


def measure(what: str, folder: Path, pairs: int, batch: int, readers: int) -> dict[str, Any]:
    """Run one measurement in this process."""
    begin, used, held = time.perf_counter(), time.process_time(), 0.0
    if what == "stream":
        count, seconds, held = stream(folder, batch, readers)
    else:
        count = prepare(folder, pairs) if what == "prepare" else lists(folder, batch)
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "what": what, "pairs": pairs, "readers": readers, "per_second": round(count / seconds), "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "peak_mib": round(peak), "readers_mib": round(held),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--readers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--lists", action="store_true", help="also measure lists, which need memory")
    parser.add_argument(
        "--stream-only", action="store_true", help="stream WebPerson's shards as published, without preparing them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "FOLDER", "READERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, folder, readers = options.one
        print(json.dumps(measure(what, Path(folder), options.pairs[0], options.batch, int(readers))))
        return
    rows = []
    print(
        f"{'what':8} {'pairs':>8} {'readers':>8} {'/ second':>9} {'seconds':>8} {'CPU s':>6} {'peak MiB':>9} {'readers MiB':>12}"
    )
    for pairs in options.pairs:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "web", -(-pairs // 2))
            streams = [("stream", number) for number in options.readers]
            before = [] if options.stream_only else [("prepare", 0), *([("lists", 0)] if options.lists else [])]
            for what, readers in [*before, *streams]:
                command = [
                    sys.executable,
                    __file__,
                    "--pairs",
                    str(pairs),
                    "--batch",
                    str(options.batch),
                    "--one",
                    what,
                    folder,
                    str(readers),
                ]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                row = json.loads(told.splitlines()[-1])
                rows.append(row)
                widths = {
                    "what": 8,
                    "pairs": 8,
                    "readers": 8,
                    "per_second": 9,
                    "seconds": 8,
                    "cpu_seconds": 6,
                    "peak_mib": 9,
                }
                print(
                    *(f"{row[name]:{width}}" for name, width in widths.items()), f"{row['readers_mib']:12}", flush=True
                )
    if options.json:
        options.json.write_text(json.dumps({"batch": options.batch, "size": SIZE, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
