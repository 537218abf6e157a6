"""The cost of scoring the tokens of a batch of captions, relative to a plain forward pass of the text tower.

    python benchmarks/scores.py [--json FILE] [--captions 16] [--tokens 40] [--rounds 3] [--device cpu] [--quick]

    eye         as the released code: every token in the graph, and for each of the 8 layers a gradient of the B x B similarities
    trace       the same numbers from one gradient of the sum of their diagonal
    ours        the gradient through the end tokens alone (components.gadms.scores.gradient), with the forward pass it needs
    ours, cached   the same when a forward pass has stored the queries, keys and values of the layers
    path        a forward and backward pass per point (components.gadms.scores.leave_one_out)
    leave-one-out  a forward pass per token

The text tower is that of ViT-B/16 with random weights; captions have equal length, and the features of their pictures are given.
The gradients of all methods are compared before anything is timed. The pass over end tokens reads every weight of the scored
layers for one token per caption: the more captions, the cheaper it is relative to a pass over all tokens. Takes about two minutes
on one thread; leave-one-out is timed once.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import Timing, save, take_turns

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from components.gadms.model import DualEncoder

ARCHITECTURE, LAYERS = "ViT-B-16-quickgelu", 8
TARGETS = {"ours": 1.1, "ours, cached": 0.15}
BUDGET = 60.0
"""A method that takes longer is not repeated."""


@dataclass(frozen=True)
class Case:
    """Captions (B, T), and pooled features (B, D) of their pictures."""

    encoder: "DualEncoder"
    ids: "Tensor"
    image: "Tensor"


def case(captions: int, tokens: int, device: "torch.device", quick: bool) -> Case:
    import torch
    from open_clip import get_model_config

    from components.gadms.model import DualEncoder
    from components.training.randomness import generator

    config = deepcopy(get_model_config(ARCHITECTURE))
    config["vision_cfg"]["layers"] = 1  # no picture is encoded here
    if quick:
        config["text_cfg"].update(width=64, heads=4)
    encoder = DualEncoder.create(config).to(device)
    random = generator(0, "score benchmark")
    ids = torch.zeros(captions, encoder.clip.context_length, dtype=torch.long)
    ids[:, :tokens] = torch.randint(1, encoder.tokenizer.mask_id, (captions, tokens), generator=random)
    ids[:, 0], ids[:, tokens - 1] = encoder.tokenizer.start_id, encoder.tokenizer.end_id
    image = torch.randn(captions, encoder.embed_dim, generator=random)
    return Case(encoder, ids.to(device), image.to(device))


def recorded(case: Case) -> tuple["Tensor", list["Tensor"]]:
    """Similarities (B, B) of pictures and captions, and the attention outputs (B, L, W) of the last layers, in one graph."""
    import torch
    from torch.nn import functional as F

    clip, end = case.encoder.clip, case.ids.argmax(-1)
    hidden, outputs = case.encoder.embed_tokens(case.ids[:, : int(end.max()) + 1]), []
    length = hidden.shape[1]
    for block in clip.transformer.resblocks:
        projected = F.linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for part in projected)
        logits = query @ key.mT * query.shape[-1] ** -0.5 + clip.attn_mask[:length, :length]
        output = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
        outputs.append(output)
        hidden = hidden + block.attn.out_proj(output)
        hidden = hidden + block.mlp(block.ln_2(hidden))
    text = case.encoder.project_text(hidden[torch.arange(len(end), device=end.device), end])
    return F.normalize(case.image, dim=-1) @ F.normalize(text, dim=-1).T, outputs[-LAYERS:]


def eye_gradients(case: Case) -> list["Tensor"]:
    """(B, W) per layer, as the released code computes them."""
    import torch

    similarity, outputs = recorded(case)
    eye = torch.eye(len(similarity), device=similarity.device)
    gradients = [torch.autograd.grad(similarity, output, eye, retain_graph=True)[0] for output in outputs]
    return _at_end(case, gradients)


def trace_gradient(case: Case) -> list["Tensor"]:
    import torch

    similarity, outputs = recorded(case)
    return _at_end(case, list(torch.autograd.grad(similarity.trace(), outputs)))


def _at_end(case: Case, gradients: list["Tensor"]) -> list["Tensor"]:
    import torch

    rows = torch.arange(len(case.ids), device=case.ids.device)
    return [gradient[rows, case.ids.argmax(-1)] for gradient in gradients]


def methods(case: Case) -> dict[str, Callable[[], object]]:
    import torch

    from components.gadms.scores.gradient import (
        EndTokenMaps,
        end_token_gradients,
        end_token_maps,
        project_tokens,
        scores_of,
    )
    from components.gadms.scores.leave_one_out import leave_one_out, path
    from components.gadms.scores.scoring import gradient_attention_scores

    encoder, ids, image = case.encoder, case.ids, case.image
    end = ids.argmax(-1)
    length = int(end.max()) + 1
    with torch.no_grad():
        cache = project_tokens(encoder, ids[:, :length], end, LAYERS, "model")
    valid = end_token_maps(encoder, ids, image, layers=LAYERS).valid

    @torch.no_grad()
    def forward() -> object:
        return encoder.encode_text(ids)

    def cached() -> object:
        start, queries, keys, values = cache
        gradients, attentions = end_token_gradients(encoder, start, keys, values, end, image, "model")
        return scores_of(EndTokenMaps(list(gradients), attentions, queries, keys, values, end, valid))

    return {
        "plain forward": forward,
        "eye": lambda: eye_gradients(case),
        "trace": lambda: trace_gradient(case),
        "ours": lambda: gradient_attention_scores(encoder, ids, image, layers=LAYERS),
        "ours, cached": cached,
        "path, 1 point": lambda: path(encoder, ids, image, points=1),
        "path, 4 points": lambda: path(encoder, ids, image, points=4),
        "leave-one-out": lambda: leave_one_out(encoder, ids, image, rows_at_once=4 * len(ids)),
    }


def largest_difference(case: Case) -> float:
    """The largest difference between the gradients of the end tokens by the three methods, relative to the largest gradient."""
    from components.gadms.scores.gradient import end_token_maps

    ours = end_token_maps(case.encoder, case.ids, case.image, layers=LAYERS).gradients
    differences = [
        float((mine - theirs).abs().max() / theirs.abs().max())
        for way in (eye_gradients(case), trace_gradient(case))
        for mine, theirs in zip(ours, way, strict=True)
    ]
    return max(differences)


def measure(case: Case, device: "torch.device", rounds: int) -> list[dict[str, Any]]:
    """One row per method: seconds, and their ratio to a plain forward pass."""
    every = methods(case)
    once = {"leave-one-out": every.pop("leave-one-out")}
    timings = take_turns(every, device, rounds=rounds, budget=BUDGET) | take_turns(once, device, rounds=1, budget=0)
    plain = timings["plain forward"].minimum
    return [_row(name, timing, plain) for name, timing in timings.items()]


def _row(name: str, timing: Timing, plain: float) -> dict[str, Any]:
    if timing.failure:
        return {"method": name, "failure": timing.failure}
    return {
        "method": name,
        "seconds": timing.minimum,
        "median": timing.median,
        "relative": timing.minimum / plain,
        "target": TARGETS.get(name),
    }


def show(rows: list[dict[str, Any]], case: Case, difference: float) -> None:
    from rich import box
    from rich.table import Table

    from pipelines.terminal.console import TableConsole

    length = int(case.ids.argmax(-1).max()) + 1
    title = f"Scores of {len(case.ids)} captions of {length} tokens, {LAYERS} of 12 layers"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("", "seconds", "median", "forward passes", "target"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for row in rows:
        if "failure" in row:
            table.add_row(row["method"], row["failure"])
            continue
        target = f"<= {row['target']:.2f}" if row["target"] else ""
        table.add_row(row["method"], f"{row['seconds']:.3f}", f"{row['median']:.3f}", f"{row['relative']:.2f}", target)
    console = TableConsole()
    console.print(table)
    console.print(f"The gradients of eye, trace and ours differ by {difference:.0e} of the largest.", style="dim")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--captions", type=int, default=16, help="per batch (default 16)")
    parser.add_argument("--tokens", type=int, default=40, help="per caption, start and end included (default 40)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a narrow tower, as a smoke test")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    device = torch.device(options.device)
    compared = case(options.captions, options.tokens, device, options.quick)
    difference = largest_difference(compared)
    if difference > 1e-3:
        raise SystemExit(f"the gradients of eye, trace and ours differ by {difference:.1e}: nothing was timed")
    rows = measure(compared, device, options.rounds)
    show(rows, compared, difference)
    if options.json:
        save(options.json, device, rows)


if __name__ == "__main__":
    main()
