"""Draw pictures from prompts, and the arms that are compared: the base model, with TACA, with its LoRA, with both."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.errors import ParameterError
from components.taca.adapter_gate import AdapterGate
from components.taca.config import TacaConfig
from components.taca.conventions import as_call_input, image_tokens, latent_shape, sampler_sigmas, text_length
from components.taca.install import disable_taca, enable_taca, taca_handle, transformer_of
from components.taca.lora import load_lora, unload_lora
from components.taca.lora_files import read_lora_settings
from components.taca.model_schedule import resolve_schedule
from components.taca.registry import conventions_of
from components.taca.schedule import TemperatureSchedule
from components.taca.source_pictures import (
    SourcePicture,
    call_parameters,
    needs_picture,
    picture_arguments,
    resolve_strength,
    skipped_steps,
)
from components.training.randomness import generator

ADAPTER = "taca"


@dataclass(frozen=True)
class Adapter:
    """A LoRA that is on while pictures are drawn.

    path: a file or folder that `load_lora` reads. weight: what its change of the weights is multiplied by. threshold: the sigma in
    [0, 1] from which up it is on; None for the one that it was trained from, if its file says, else 0, at every step. A file with
    parts for text encoders has no threshold but 0: prompts are embedded once, with it.
    """

    path: Path
    weight: float = 1.0
    threshold: float | None = None

    def active_from(self) -> float:
        """Return the lowest sigma at which it is on. Raises DataError for an unreadable file."""
        if self.threshold is not None:
            return self.threshold
        settings = read_lora_settings(self.path)
        return 0.0 if settings.get("form") == "constant" else float(settings.get("threshold", 0.0))


@dataclass(frozen=True)
class Arm:
    """What is enabled while pictures are drawn. By default nothing: the base model.

    adapter: a LoRA or several; a path alone is an `Adapter` with the weight 1. schedule: the temperature schedule of TACA; None for
    stock attention.
    """

    adapter: Path | Adapter | tuple[Path | Adapter, ...] | None = None
    schedule: TemperatureSchedule | None = None

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """All LoRAs of the arm."""
        given = self.adapter if isinstance(self.adapter, tuple) else () if self.adapter is None else (self.adapter,)
        return tuple(one if isinstance(one, Adapter) else Adapter(Path(one)) for one in given)


@contextmanager
def apply_arm(pipe: Any, arm: Arm) -> Iterator[Any]:
    """Enable the arm's TACA and gated LoRAs on `pipe.transformer`, and LoRAs' parts for text encoders, and restore all afterwards.

    Restored are attention processors, adapters, and any TACA enabled before; an arm without a schedule runs without TACA.
    Raises `DataError` for an unreadable adapter, and `ParameterError` for one that the pipeline has no place for.
    """
    transformer = transformer_of(pipe)
    before = taca_handle(transformer)
    with ExitStack() as undo:
        if before is not None:
            undo.callback(enable_taca, transformer, before.schedule)
        disable_taca(transformer)
        if arm.schedule is not None:
            enable_taca(transformer, arm.schedule)
            undo.callback(disable_taca, transformer)
        for number, adapter in enumerate(arm.adapters):
            name, active_from = f"{ADAPTER}_{number}" if number else ADAPTER, adapter.active_from()
            load_lora(pipe, adapter.path, name, adapter.weight)
            undo.callback(unload_lora, pipe, name)
            if active_from > 0:
                undo.enter_context(AdapterGate(pipe, name, active_from))
        yield pipe


def initial_noise(pipe: Any, seeds: Sequence[int], height: int, width: int) -> Tensor:
    """Draw noise in float32 in the shape of the latents that the pipeline's call takes: packed (N, S, C), or (N, C, H, W).

    Row i depends on seeds[i] alone, neither on the batch nor on the dtype of the model.
    """
    shape = latent_shape(pipe, height, width)
    noise = torch.stack([torch.randn(shape, generator=generator(s, "initial noise")) for s in seeds])
    return as_call_input(pipe, noise)


def schedule_for_pictures(pipe: Any, config: TacaConfig, *, height: int, width: int, steps: int) -> TemperatureSchedule:
    """Return the schedule of `config` (the section `taca` of params.yaml) for pictures of this size, drawn in `steps` steps."""
    return resolve_schedule(config, pipe, tokens=image_tokens(pipe, height, width), steps=steps)


def active_steps(
    pipe: Any,
    schedule: TemperatureSchedule,
    *,
    height: int,
    width: int,
    steps: int,
    dtype: torch.dtype | None = None,
    strength: float | None = None,
) -> int:
    """Count the sampler's steps at which `schedule` is on, timesteps rounded as the pipeline rounds them.

    A step of a sampler that evaluates twice (Heun) counts once. dtype: that pictures are drawn in; None for the transformer's.
    strength: of a pipeline that starts from a picture and leaves out the first steps (`resolve_strength`). Raises `ParameterError`
    for a scheduler that the pipeline cannot call.
    """
    levels = sampler_sigmas(pipe, steps, height, width, dtype or pipe.transformer.dtype)
    return int(schedule.is_active(levels[skipped_steps(steps, strength) :]).sum())


@torch.no_grad()
def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    height: int,
    width: int,
    steps: int,
    guidance: float = 1.0,
    embedded_guidance: float = 3.5,
    negative_prompts: Sequence[str] | None = None,
    sources: Sequence[SourcePicture] | None = None,
    strength: float | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw one picture per (prompt, seed) with the pipeline's own `__call__`: uint8 (N, 3, height, width) on the CPU.

    pipe: of a transformer in `components.taca.registry`, in float32, bfloat16 or float16; noise is drawn in float32 always, and
    with `sources` in the dtype of the pipeline. guidance: the scale of classifier-free guidance against `negative_prompts`, one
    per prompt (default: empty); 1 is off. embedded_guidance: the scale that guidance-distilled models (FLUX.1-dev) take as an
    input; ignored by others. sources: a picture per prompt, for a pipeline that takes one (`from_pictures`); strength: how far
    from it, in (0, 1], None for the pipeline's own. progress: called with (done, total) after every batch.

    The picture of a (prompt, seed) does not depend on its neighbours. In the same batch composition it is bit-equal; in another
    batch size matrix kernels round differently, which moves a value by about 1e-5 and rarely an 8-bit pixel by one.

    Raises `ParameterError` when prompts and seeds differ in number, a setting is out of range or has no effect, a picture is
    missing or not taken, the pipeline cannot call its scheduler, or values are not finite.
    """
    _require_settings(pipe, prompts, seeds, steps, batch_size, guidance, negative_prompts, sources)
    sampler_sigmas(pipe, steps, height, width)  # refuses a scheduler that the call below would end with a traceback for
    conventions, accepted, pictures = conventions_of(pipe), call_parameters(pipe), []
    strength = resolve_strength(pipe, strength)
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        part = list(prompts[rows])
        arguments: dict[str, Any] = {
            "prompt": part,
            "negative_prompt": list((negative_prompts or [""] * len(prompts))[rows]) if guidance > 1 else None,
            **conventions.guidance_arguments(pipe, guidance, embedded_guidance),
            "height": height,
            "width": width,
            "num_inference_steps": steps,
            "max_sequence_length": text_length(pipe),
            "output_type": "pt",
        }
        if sources is None:
            arguments["latents"] = initial_noise(pipe, seeds[rows], height, width)
        else:
            arguments |= picture_arguments(pipe, sources[rows], height, width, strength)
            arguments["generator"] = [generator(seed, "initial noise") for seed in seeds[rows]]
        drawn = pipe(
            **{name: value for name, value in arguments.items() if name in accepted}
        ).images  # (B, 3, H, W) in [0, 1]
        if not drawn.isfinite().all():
            dtype = str(pipe.transformer.dtype).removeprefix("torch.")
            raise ParameterError(
                f"generate: a picture of {part[0]!r} is not finite in {dtype}; draw in bfloat16 or float32"
            )
        pictures.append((drawn.float() * 255).round().to(torch.uint8).cpu())
        if progress:
            progress(start + len(part), len(prompts))
    return torch.cat(pictures) if pictures else torch.empty((0, 3, height, width), dtype=torch.uint8)


def _require_settings(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    guidance: float,
    negative_prompts: Sequence[str] | None,
    sources: Sequence[SourcePicture] | None,
) -> None:
    """Raise ParameterError for settings of `generate` that do not go together."""
    name, accepted = type(pipe).__name__, call_parameters(pipe)
    if len(prompts) != len(seeds):
        raise ParameterError(f"generate: {len(prompts)} prompts but {len(seeds)} seeds; give one seed per prompt")
    for what, given in (("negative prompts", negative_prompts), ("pictures", sources)):
        if given is not None and len(given) != len(prompts):
            raise ParameterError(f"generate: {len(prompts)} prompts but {len(given)} {what}; give one per prompt")
    if steps < 1 or batch_size < 1 or guidance < 1:
        raise ParameterError(
            f"generate: steps {steps}, batch_size {batch_size}, guidance {guidance}: each must be at least 1"
        )
    if guidance > 1 and "negative_prompt" not in accepted:
        raise ParameterError(
            f"guidance {guidance:g}: {name} has no classifier-free guidance; set it to 1, which is off"
        )
    if guidance == 1 and any(negative_prompts or ()):
        raise ParameterError("a negative prompt has no effect at guidance 1, which is off; set guidance above 1")
    if sources is None and needs_picture(pipe):
        raise ParameterError(f"{name}: draws from a picture, so every prompt needs an image")
    if sources is not None and "image" not in accepted:
        raise ParameterError(f"{name}: takes no picture; see from_pictures")
