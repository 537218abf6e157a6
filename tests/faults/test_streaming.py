"""Ray Data reads ahead: the batches of a step number, whoever reads them and whoever dies."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from components.errors import DataError
from components.persons.shards import CaptionRow, DatasetWriter
from components.persons.streaming.corpus import open_corpus
from components.persons.streaming.sample_reader import SampleReader
from pipelines.identity.closure import ROOT
from pipelines.schema.running import Compute
from pipelines.streaming.read_ahead import ReadAhead

pytestmark = [pytest.mark.faults, pytest.mark.ray]
STEPS = 200


def spelling(seconds=0.0):
    """A tokenizer: the first eight characters. Inside a function, so that Ray sends its code: workers do not know this file."""

    def letters(captions):
        import time

        import torch

        time.sleep(seconds)
        return torch.tensor([[ord(c) for c in text.ljust(8)[:8]] for text in captions])

    return letters


def write(folder, torn=None):
    random = np.random.default_rng(0)
    with DatasetWriter(folder, images_per_shard=700) as writer:
        for i in range(1500):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (16, 8, 3), dtype=np.uint8)).save(file, "PNG")
            content = b"torn" if i == torn else file.getvalue()
            writer.add(content, [CaptionRow(f"{i} a"), CaptionRow(f"{i} b")], identity=i, split="train", source="made")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("streaming") / "people")


@pytest.fixture(scope="module", autouse=True)
def ray_of_this_module():
    from pipelines.engine.ray_cluster import set_ray_defaults, start_ray

    set_ray_defaults()
    import ray

    start_ray(Compute())
    yield
    ray.shutdown()


def reader(folder, **settings):
    settings = {"tokenizer": spelling(), "batch_size": 32, "seed": 1, "window": 2, **settings}
    return SampleReader(open_corpus(folder), size=(16, 8), **settings)


def ahead(source, steps=STEPS, readers=2):
    return ReadAhead(source, steps=steps, readers=readers, compute=Compute())


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_steps_come_in_order_from_any_step_on_as_they_are_read_here(folder):
    here = reader(folder)
    with ahead(reader(folder)) as there:
        for step in [*range(20), *range(97, 120)]:
            assert same(there.read(step), here.read(step)), step
        with pytest.raises(IndexError):
            there.read(STEPS)


def test_a_killed_reader_is_replaced_and_no_step_is_lost_or_changed(folder):
    here = reader(folder)
    with ahead(reader(folder, tokenizer=spelling(0.05))) as there:
        assert same(there.read(0), here.read(0))
        readers = [
            p
            for p in psutil.Process().children(recursive=True)
            if "_Reading" in " ".join(p.cmdline()[:1] or [p.name()])
        ]
        assert len(readers) == 2, [p.cmdline() for p in psutil.Process().children(recursive=True)]
        readers[0].kill()
        for step in range(1, 80):
            assert same(there.read(step), here.read(step)), step


def test_a_picture_that_cannot_be_decoded_ends_with_the_readers_own_line(tmp_path):
    with ahead(reader(write(tmp_path / "torn", torn=700))) as there, pytest.raises(DataError) as error:
        list(map(there.read, range(STEPS)))
    assert "cannot be decoded: " in str(error.value)
    assert "run prepare" in str(error.value)
    assert "\n" not in str(error.value)


def test_two_worker_processes_read_the_global_batches_of_one(folder):
    """Real worker processes, each with a pipeline of its own; rank by rank they are the rows of one rank's batch."""
    import ray

    def rows_of(source):
        from pipelines.schema.running import Compute
        from pipelines.streaming.read_ahead import ReadAhead

        with ReadAhead(source, steps=30, readers=1, compute=Compute()) as there:
            return [there.read(step)["caption_index"].tolist() for step in range(10, 30)]

    remote = ray.remote(num_cpus=1)(rows_of)
    sources = [reader(folder, rank=rank, world_size=2) for rank in range(2)]
    first, second = ray.get([remote.remote(source) for source in sources])
    here = reader(folder)
    for place, step in enumerate(range(10, 30)):
        assert first[place] + second[place] == here.read(step)["caption_index"].tolist()


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Of a process that streams an epoch of 10 000 pairs, and of 40 000, of which a list with its tokens takes 30 MiB more."""
    peaks = []
    for pairs in (10_000, 40_000):
        out = tmp_path / f"{pairs}.json"
        command = [
            sys.executable,
            "benchmarks/streaming.py",
            "--pairs",
            str(pairs),
            "--readers",
            "0",
            "--stream-only",
            "--json",
            str(out),
        ]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280)
        peaks.append(json.loads(Path(out).read_text())["rows"][-1]["peak_mib"])
    assert peaks[1] < peaks[0] + 25, peaks
