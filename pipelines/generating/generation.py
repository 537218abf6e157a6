"""`python -m pipelines generate PROMPTS --output DIR`: pictures for every prompt of a file.

After a stop or kill at any moment, the same command draws the missing shards; the folder ends with the same bytes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from components.errors import ParameterError
from components.settings import to_json
from components.taca.generation import Adapter
from pipelines import graph
from pipelines.generating.folder import OutputFolder
from pipelines.generating.options import GenerateOptions
from pipelines.generating.painter import DrawnShard, DrawSettings
from pipelines.generating.plan import Shard, plan, plan_digest
from pipelines.generating.pool import draw
from pipelines.generating.prompts import read_prompts
from pipelines.generating.samples import RENAMED, SAMPLES, export_samples
from pipelines.params import Parameters, load
from pipelines.schema.running import Compute
from pipelines.workspace import Workspace


def generate(options: GenerateOptions, workspace: Workspace) -> None:
    """Read the prompts, draw the missing shards, and write the manifest.

    Raises ParameterError for options that contradict each other or an output folder with other contents, DataError for prompts, a
    model or an adapter that cannot be read, InfrastructureError when workers keep dying.
    """
    params = load(workspace.path("params.yaml"))
    compute = _compute(options, params)
    drawing = _drawing(options, params, workspace)
    prompts, skipped = read_prompts(options.prompts, options.max_characters)
    seed = params.seed if options.seed is None else options.seed
    shards = plan(prompts, seed, options.images_per_prompt, options.shard_size)
    settings = {**drawing.recorded(compute.threads), "seed": seed, "images_per_prompt": options.images_per_prompt}
    settings |= {"shard_size": options.shard_size, "prompts": plan_digest(shards)}
    folder = OutputFolder(options.output)
    with folder.claim(json.loads(json.dumps(settings))):
        folder.write_skipped(skipped)
        digests = folder.finished(shards)
        missing = [shard for shard in shards if shard.number not in digests]
        with (
            closing(draw(drawing, folder.shards, missing, compute)) as drawn,
            _progress(shards, missing, drawing) as report,
        ):
            for shard, result in drawn:
                folder.record(shard, result.digest)
                digests[shard.number] = result.digest
                report(shard, result)
        folder.write_manifest(shards, digests, settings)
        pictures = sum(len(shard.pictures) for shard in shards)
        print(f"{folder.path}: {pictures} pictures in {len(shards)} shards, {len(missing)} of them drawn now")
        if skipped:
            print(f"{len(skipped)} bad prompts skipped: see {folder.path / 'skipped.json'}", file=sys.stderr)
        if options.naming == "compbench":
            written, renamed = export_samples(folder.path, shards)
            print(f"{folder.path / SAMPLES}: {written} of {pictures} pictures written now")
            if renamed:
                print(
                    f"{len(renamed)} file names do not give their prompt: see {folder.path / RENAMED}", file=sys.stderr
                )


def _drawing(options: GenerateOptions, params: Parameters, workspace: Workspace) -> DrawSettings:
    def or_default(value: Any, default: Any) -> Any:
        return default if value is None else value

    if options.threshold is not None and options.gamma is None:
        raise ParameterError("--threshold is where --gamma is on: give both; that of LoRAs is --adapter-threshold")
    taca = None
    if options.gamma is not None:
        threshold = or_default(options.threshold, params.taca.threshold)
        taca = to_json(replace(params.taca, gamma=options.gamma, threshold=threshold))
    return DrawSettings(
        model=(options.model or workspace.path(graph.BASE["base"])).absolute(),
        adapters=_adapters(options),
        taca=taca,
        height=or_default(options.height, params.pictures.height),
        width=or_default(options.width, params.pictures.width),
        steps=or_default(options.steps, params.taca_generate.steps),
        guidance=options.guidance,
        embedded_guidance=or_default(options.embedded_guidance, params.taca_generate.embedded_guidance),
        dtype=or_default(options.dtype, params.taca_generate.base_dtype),
        batch=options.batch,
    )


def _adapters(options: GenerateOptions) -> tuple[Adapter, ...]:
    given: list[float | None] = [*options.adapter_threshold]
    if len(given) not in (0, 1, len(options.adapter)) or len(given) > len(options.adapter):
        raise ParameterError(
            f"--adapter-threshold is given {len(given)} times for {len(options.adapter)} adapters: give it once for all, "
            "or once for each --adapter, in their order"
        )
    thresholds = given if len(given) == len(options.adapter) else (given or [None]) * len(options.adapter)
    # A worker has another working directory.
    return tuple(
        Adapter(path.absolute(), weight, threshold)
        for (path, weight), threshold in zip(options.adapter, thresholds, strict=True)
    )


def _compute(options: GenerateOptions, params: Parameters) -> Compute:
    """Return the section of params.yaml, updated by the options; every value has been checked."""
    given = {name: getattr(options, name) for name in ("workers", "threads", "device", "max_failures")}
    return params.compute.model_copy(update={name: value for name, value in given.items() if value is not None})


@contextmanager
def _progress(
    shards: list[Shard], missing: list[Shard], drawing: DrawSettings
) -> Iterator[Callable[[Shard, DrawnShard], None]]:
    """Yield a function that reports a finished shard: on a terminal by a progress bar, else by a line."""
    total, to_draw = (sum(len(shard.pictures) for shard in some) for some in (shards, missing))
    finished: list[tuple[float, int]] = []  # (when, pictures) of each shard
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=total, completed=total - to_draw)

        def report(shard: Shard, result: DrawnShard) -> None:
            if not finished and drawing.taca:
                print(f"TACA is on at {result.active_steps} of {drawing.steps} steps", flush=True)
            if not finished:
                for adapter, steps in zip(drawing.adapters, result.adapter_steps, strict=True):
                    weighted = "" if adapter.weight == 1 else f" with weight {adapter.weight:g}"
                    print(f"{adapter.path.name} is on{weighted} at {steps} of {drawing.steps} steps", flush=True)
            finished.append((time.monotonic(), len(shard.pictures)))
            bar.advance(task, len(shard.pictures))
            if not sys.stdout.isatty():
                done = total - to_draw + sum(pictures for _, pictures in finished)
                print(f"{shard.name}: {done} of {total} pictures{_rate(finished)}", flush=True)

        yield report


def _rate(finished: list[tuple[float, int]]) -> str:
    """Return the rate since the first shard, which includes loading the model."""
    if len(finished) < 2:
        return ""
    return f", {sum(pictures for _, pictures in finished[1:]) / (finished[-1][0] - finished[0][0]):.3g} a second"
