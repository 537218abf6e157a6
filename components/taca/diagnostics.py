"""Text mass: the part of the image's attention that goes to the text, per layer and sampler step, with TACA and without.

The paper's first finding (arXiv 2506.07986, section 3.2) is that image queries give the text too little of their softmax, because
image keys outnumber text keys. This measures it on the running model, from the queries and keys that its attention gets.
More mass does not prove that a temperature works: where a row's text logits are negative, a gamma above 1 reduces it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.errors import ParameterError
from components.taca.config import Effect
from components.taca.families import Family, forward_parameters, named_arguments
from components.taca.generation import generate
from components.taca.install import taca_handle
from components.taca.observation import observe_attention
from components.taca.registry import family_of
from components.taca.schedule import TemperatureSchedule


@torch.no_grad()
def text_attention_mass(
    query: Tensor,
    key: Tensor,
    text: slice,
    *,
    gamma: Tensor | None = None,
    effect: Effect = "temperature",
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    chunk: int = 256,
) -> Tensor:
    """Return the softmax mass of image queries on text keys, mean over image queries: (B, H), in [0, 1].

    query, key: (B, S, H, D) over the joint sequence, as attention gets them. text: the slice of the sequence that is text. gamma:
    TACA's temperature, broadcast to the text keys (B, T, H, 1), None for 1; with `effect` "bias" its logarithm is added to the
    logits instead. attn_mask: (B, S) over keys or broadcastable to (B, H, S, S), boolean (True: attends) or added to the logits.
    scale: the softmax scale, default 1/sqrt(D). A query whose keys are all masked is left out of the mean; NaN where
    that is every query.

    Exact, in float32 (float64 for float64 inputs): with l_text and l_image the log-sum-exp of a row's two groups of logits, its
    mass is sigmoid(l_text - l_image). `chunk` query rows are in memory at once, so the largest tensor is B H chunk S. Raises
    `ParameterError` where the sequence is not joint, or is all text or all image.
    """
    batch, length = key.shape[:2]
    start, stop, step = text.indices(length)
    if query.shape[1] != length:
        raise ParameterError(f"text mass needs joint attention: {query.shape[1]} queries against {length} keys")
    if step != 1 or not 0 < stop - start < length:
        raise ParameterError(
            f"text = {text}: must be a part of the {length} joint tokens, and leave some for the image"
        )
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    image = torch.cat([torch.arange(start), torch.arange(stop, length)]).to(key.device)  # places of image tokens
    factor = torch.ones((), device=key.device) if gamma is None else gamma
    factor = factor.to(key.device, dtype).expand(batch, stop - start, key.shape[2], 1)
    times, plus = (factor, 0.0) if effect == "temperature" else (1.0, factor.log().permute(0, 2, 3, 1))  # (B, H, 1, T)
    text_key = (key[:, start:stop].to(dtype) * times).permute(0, 2, 3, 1)  # (B, H, D, T)
    image_key = key[:, image].to(dtype).permute(0, 2, 3, 1)  # (B, H, D, S - T)
    mask = _four_dimensional(attn_mask, batch)

    total = torch.zeros(batch, query.shape[2], dtype=dtype, device=query.device)
    counted = torch.zeros_like(total)
    with torch.autocast(query.device.type, enabled=False):  # which would take the products in half precision
        for rows in image.split(chunk):
            scaled = query[:, rows].to(dtype).transpose(1, 2) * scale  # (B, H, rows, D)
            visible = mask[..., rows, :] if mask is not None and mask.shape[-2] == length else mask
            text_sum = _log_sum(scaled @ text_key + plus, None if visible is None else visible[..., start:stop])
            image_sum = _log_sum(scaled @ image_key, None if visible is None else visible[..., image])
            mass = torch.sigmoid(text_sum - image_sum)  # (B, H, rows); -inf - -inf is NaN
            total += mass.nansum(-1)
            counted += mass.isfinite().sum(-1)
    return total / counted


def _log_sum(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return log sum exp over keys of masked logits (B, H, rows, keys); -inf where every key is masked."""
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.logsumexp(-1)


def _four_dimensional(mask: Tensor | None, batch: int) -> Tensor | None:
    """Return a mask with axes for batch, heads, queries and keys; size 1 where all of them share it."""
    if mask is None or mask.ndim == 4:
        return mask
    if mask.ndim == 2 and mask.shape[0] == batch:  # (B, S) over keys
        return mask[:, None, None, :]
    return mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)


@dataclass(frozen=True)
class TextMass:
    """Text mass of N pictures over the K transformer calls that drew them, in L joint attention layers.

    layers: names ("double 0"), in the order of the forward pass. sigma: (K,) float32, the noise level of each call. active: (K, L)
    bool, whether a temperature other than 1 was applied. mass: (N, K, L) float32 in [0, 1], mean over image queries and heads.
    """

    layers: tuple[str, ...]
    sigma: Tensor
    active: Tensor
    mass: Tensor
    text_tokens: int
    image_tokens: int

    @property
    def uniform_share(self) -> float:
        """The mass of text if all keys had the same weight: its fraction of the tokens."""
        return self.text_tokens / (self.text_tokens + self.image_tokens)

    def columns(self, prompt_ids: Sequence[int]) -> dict[str, list[Any]]:
        """Return a table with a row per picture, call and layer; `prompt_ids` (N,) names the pictures, steps count from 1."""
        number, calls, layers = self.mass.shape
        cells = [(prompt, call, layer) for prompt in range(number) for call in range(calls) for layer in range(layers)]
        return {
            "prompt_id": [prompt_ids[prompt] for prompt, _, _ in cells],
            "step": [call + 1 for _, call, _ in cells],
            "sigma": [self.sigma[call].item() for _, call, _ in cells],
            "layer": [self.layers[layer] for _, _, layer in cells],
            "active": [bool(self.active[call, layer]) for _, call, layer in cells],
            "mass": self.mass.flatten().tolist(),
        }


def measure_text_mass(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    height: int,
    width: int,
    steps: int,
    embedded_guidance: float = 3.5,
    batch_size: int = 32,
    chunk: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> TextMass:
    """Draw one picture per (prompt, seed), as `generate` does without guidance, and record the text mass.

    Enable TACA, or enter `apply_arm`, before. Without guidance because the second forward would be of another prompt. The other
    settings are those of `generate`; `chunk` is that of `text_attention_mass`; `progress` is called with (done, total) after every
    batch. Raises as `generate`, and `ParameterError` for nothing to draw.
    """
    if not prompts:
        raise ParameterError("measure_text_mass: no prompts; give at least one")
    parts = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        with _recorded(pipe.transformer, chunk) as recorder:
            generate(
                pipe,
                prompts[part],
                seeds[part],
                height=height,
                width=width,
                steps=steps,
                embedded_guidance=embedded_guidance,
                batch_size=batch_size,
            )
        parts.append(recorder.result())
        if progress:
            progress(min(start + batch_size, len(prompts)), len(prompts))
    first = parts[0]
    mass = torch.cat([part.mass for part in parts])
    return TextMass(first.layers, first.sigma, first.active, mass, first.text_tokens, first.image_tokens)


class _Recorder:
    """Collects noise levels and text mass while a transformer draws pictures."""

    def __init__(self, family: Family, config: Any, schedule: TemperatureSchedule | None, chunk: int) -> None:
        self.family, self.config, self.schedule, self.chunk = family, config, schedule, chunk
        self.sigma: list[Tensor] = []  # of each call
        self.records: list[tuple[str, Tensor, Tensor]] = []  # by call, then layer: name, mass (B,), active ()
        self.tokens = (0, 0)

    def layer(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        text: slice | Tensor,
        gamma: Tensor | None,
        attn_mask: Tensor | None,
        scale: float | None,
    ) -> None:
        if isinstance(text, Tensor):
            raise ParameterError("text mass: text is at places that differ by sample; draw with batch_size=1")
        effect, queries = (self.schedule.effect, self.schedule.queries) if self.schedule else ("temperature", "image")
        mass = text_attention_mass(
            query,
            key,
            text,
            gamma=gamma if queries == "image" else None,  # the control arm on text queries leaves image queries alone
            effect=effect,
            attn_mask=attn_mask,
            scale=scale,
            chunk=self.chunk,
        )
        active = torch.zeros((), dtype=torch.bool) if gamma is None else (gamma != 1).any()
        self.records.append((_short_name(name, self.family, self.config), mass.mean(1), active))
        count = len(range(*text.indices(key.shape[1])))
        self.tokens = (count, key.shape[1] - count)

    def result(self) -> TextMass:
        layers, calls = tuple(dict.fromkeys(name for name, _, _ in self.records)), len(self.sigma)
        if not layers or [name for name, _, _ in self.records] != list(layers) * calls:
            raise ParameterError(
                f"text mass: {len(self.records)} attention calls in {calls} transformer calls of {len(layers)} joint layers; "
                "measure a model that calls every layer once, without a compiled or cached forward"
            )
        mass = torch.stack([mass for _, mass, _ in self.records], dim=1).float().cpu()  # (B, K * L)
        active = torch.stack([active.cpu() for _, _, active in self.records])
        return TextMass(
            layers,
            torch.stack(self.sigma).cpu(),
            active.unflatten(0, (calls, len(layers))),
            mass.unflatten(1, (calls, len(layers))),
            *self.tokens,
        )


@contextmanager
def _recorded(transformer: Any, chunk: int) -> Iterator[_Recorder]:
    """Record the calls of `transformer` until the block ends."""
    handle, family, parameters = taca_handle(transformer), family_of(transformer), forward_parameters(transformer)
    recorder = _Recorder(family, transformer.config, handle.schedule if handle else None, chunk)

    def begin(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = named_arguments(parameters, args, kwargs)[family.timestep_argument]
        recorder.sigma.append(family.sigma(timestep)[0])  # a sampler gives all samples one level

    hook = transformer.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with observe_attention(transformer, recorder.layer):
            yield recorder
    finally:
        hook.remove()


def _short_name(module: str, family: Family, config: Any) -> str:
    """Return the short name of a joint attention module: "transformer_blocks.0.attn" is "double 0"."""
    numbers = [part for part in module.split(".") if part.isdigit()]
    return f"{family.stream(module, config)} {numbers[0]}" if numbers else module
