"""`python -m pipelines generate PROMPTS --output DIR`: pictures for every prompt of a file.

After a stop or kill at any moment, the same command draws the missing shards; the folder ends with the same bytes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from components.errors import ParameterError
from components.settings import to_json
from components.taca.generation import Adapter
from components.taca.offloading import require_offloading
from components.taca.quantization import require_quantizable
from components.taca.reference import DTYPES
from pipelines import graph
from pipelines.engine.ray_cluster import device_of
from pipelines.generating.folder import OutputFolder
from pipelines.generating.options import GenerateOptions
from pipelines.generating.painter import DrawnShard, DrawSettings
from pipelines.generating.plan import Shard, plan, plan_digest
from pipelines.generating.pool import draw
from pipelines.generating.prompts import Prompt, read_prompts
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
    require_quantizable(drawing.quantize, DTYPES[drawing.dtype], compute.offload)
    prompts, skipped = read_prompts(options.prompts, options.max_characters)
    seed = params.seed if options.seed is None else options.seed
    _require_use(prompts, drawing)
    shards = plan(prompts, seed, options.images_per_prompt, options.shard_size, tuple(drawing.each) or ("",))
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
    adapters = _adapters(options)
    together, each = adapters[: len(options.adapter)], adapters[len(options.adapter) :]
    return DrawSettings(
        model=(options.model or workspace.path(graph.BASE["base"])).absolute(),
        adapters=together,
        taca=taca,
        height=or_default(options.height, params.pictures.height),
        width=or_default(options.width, params.pictures.width),
        steps=or_default(options.steps, params.taca_generate.steps),
        guidance=options.guidance,
        embedded_guidance=or_default(options.embedded_guidance, params.taca_generate.embedded_guidance),
        dtype=or_default(options.dtype, params.taca_generate.base_dtype),
        batch=options.batch,
        each=dict(zip(labels(each), each, strict=True)),
        negative_prompt=or_default(options.negative_prompt, ""),
        strength=options.strength,
        quantize=or_default(options.quantize, params.taca_generate.quantize),
        gguf=options.gguf and options.gguf.absolute(),
    )


def _require_use(prompts: Sequence[Prompt], drawing: DrawSettings) -> None:
    """Raise ParameterError for options that would have no effect on these prompts."""
    if drawing.guidance == 1 and (drawing.negative_prompt or any(prompt.negative for prompt in prompts)):
        raise ParameterError("a negative prompt has no effect at guidance 1, which is off: give --guidance above 1")
    if drawing.strength is not None and prompts[0].image is None:
        raise ParameterError(
            "--strength is the distance from a picture: give a manifest with the column `image`, or leave it out"
        )
    if prompts[0].mask and not prompts[0].image:
        raise ParameterError(
            "the manifest has masks but no images: a mask says where to paint over the picture in `image`"
        )


def labels(adapters: Sequence[Adapter]) -> list[str]:
    """Return a name for each LoRA: that of its file, after as many of its folders as tell them apart, and its weight unless it
    is 1.

    Raises ParameterError for the same LoRA twice.
    """
    weights = ["" if adapter.weight == 1 else f":{adapter.weight:g}" for adapter in adapters]
    for depth in range(1, 1 + max((len(adapter.path.parts) for adapter in adapters), default=0)):
        names = ["/".join(one.path.parts[-depth:]) + weight for one, weight in zip(adapters, weights, strict=True)]
        if len(set(names)) == len(names):
            return names
    if adapters:
        raise ParameterError(
            f"--each-adapter: {adapters[0].path} or another is given twice; give each LoRA and weight once"
        )
    return []


def _adapters(options: GenerateOptions) -> tuple[Adapter, ...]:
    """Return the LoRAs that are on together, then those that are on in turn."""
    given: list[float | None] = [*options.adapter_threshold]
    paths = [*options.adapter, *options.each_adapter]
    if len(given) not in (0, 1, len(paths)) or len(given) > len(paths):
        raise ParameterError(
            f"--adapter-threshold is given {len(given)} times for {len(paths)} adapters: give it once for all, or once for each "
            "--adapter, then each --each-adapter, in their order"
        )
    thresholds = given if len(given) == len(paths) else (given or [None]) * len(paths)
    # A worker has another working directory.
    return tuple(
        Adapter(path.absolute(), weight, threshold) for (path, weight), threshold in zip(paths, thresholds, strict=True)
    )


def _compute(options: GenerateOptions, params: Parameters) -> Compute:
    """Return the section of params.yaml, updated by the options, each of which has been checked.

    Raises ParameterError for offloading where there is no GPU: here if this process draws, else if workers were told not to use
    one.
    """
    names = ("workers", "threads", "device", "offload", "max_failures")
    given = {name: getattr(options, name) for name in names}
    compute = params.compute.model_copy(update={name: value for name, value in given.items() if value is not None})
    if compute.workers == 0 or compute.device == "cpu":
        require_offloading(compute.offload, device_of(compute))
    return compute


@contextmanager
def _progress(
    shards: list[Shard], missing: list[Shard], drawing: DrawSettings
) -> Iterator[Callable[[Shard, DrawnShard], None]]:
    """Yield a function that reports a finished shard: on a terminal by a progress bar, else by a line."""
    total, to_draw = (sum(len(shard.pictures) for shard in some) for some in (shards, missing))
    finished: list[tuple[float, int]] = []  # (when, pictures) of each shard
    seen: set[str] = set()  # LoRAs whose turn has come
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=total, completed=total - to_draw)

        def report(shard: Shard, result: DrawnShard) -> None:
            if not finished and drawing.taca:
                skipped = result.active_steps == 0 and result.steps < drawing.steps
                hint = ": raise --strength, or lower --threshold" if skipped else ""
                print(f"TACA is on at {result.active_steps} of {result.steps} steps{hint}", flush=True)
            if not finished:
                for adapter, steps in zip(drawing.adapters, result.adapter_steps, strict=False):
                    weighted = "" if adapter.weight == 1 else f" with weight {adapter.weight:g}"
                    print(f"{adapter.path.name} is on{weighted} at {steps} of {result.steps} steps", flush=True)
            if shard.adapter and shard.adapter not in seen:
                seen.add(shard.adapter)
                print(f"{shard.adapter} is on at {result.adapter_steps[-1]} of {result.steps} steps", flush=True)
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
