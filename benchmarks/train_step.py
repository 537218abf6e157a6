"""The cost of a training step of GA-DMS, beside a plain contrastive step of the same towers and beside the released implementation.

    python benchmarks/train_step.py [--architecture small|NAME] [--batch 32] [--words 24 80] [--device cpu|cuda]
                                    [--rounds 3] [--json FILE]

    contrastive   one pass through each tower, InfoNCE
    random        the step of the control: both copies masked at random, SDM and masked-token prediction
    gadms         the same, masked by gradient-attention scores, which are computed for the next visit
    reference     the released step, reimplemented: no caption is trimmed, scores by one gradient of a B x B matrix per scored
                  layer, a copy to the CPU per caption, and logits of the vocabulary at all 77 positions

A step is forward, backward and AdamW, in float32. The weights are random; captions are random words, their number drawn around
`--words` (the mean of CUHK-PEDES is 23.5) with a deviation of a third; 80 fills all positions, so that nothing can be trimmed.
`small` has the towers of a laptop (96 x 48 pixels, 4 and 6 blocks of width 128) and CLIP's vocabulary; NAME is one of open_clip,
at 384 x 128. Nothing is asserted. The default takes about two minutes on one thread.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from timing import describe, save, take_turns
from torch import Tensor
from torch.nn import functional as F

from components.gadms.decoder import CrossModalDecoder
from components.gadms.masking import DualMask, dual_mask
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.objectives import similarity_distribution_matching
from components.gadms.scores.gradient import default_scoring_layers
from components.gadms.tasks import RetrievalBatch, RetrievalTask
from components.training.randomness import generator

SMALL = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [96, 48], "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 6},
}
METHODS = ("contrastive", "random", "gadms", "reference")


def random_batch(encoder: DualEncoder, size: int, words: int) -> RetrievalBatch:
    """A batch of different identities, with captions of about `words` random tokens."""
    random, tokens = generator(0, "train step benchmark"), encoder.tokenizer
    lengths = (words + words / 3 * torch.randn(size, generator=random)).round().clamp(5, 75).long()
    ids = torch.zeros(size, 77, dtype=torch.long)
    for row, length in enumerate(lengths.tolist()):
        ids[row, 1 : length + 1] = torch.randint(1, tokens.mask_id, (length,), generator=random)
        ids[row, 0], ids[row, length + 1] = tokens.start_id, tokens.end_id
    height, width = encoder.image_size
    index = torch.arange(size)
    return RetrievalBatch(
        pixels=torch.randn(size, 3, height, width, generator=random), ids=ids, identities=index, caption_index=index
    )


def released_scores(encoder: DualEncoder, ids: Tensor, image: Tensor) -> Tensor:
    """Scores (B, 77) as the released code computes them: all positions, one head, a gradient of B x B for each scored layer.

    Its pooling of keys is left out, which costs nothing beside the rest.
    """
    blocks, layers = encoder.clip.transformer.resblocks, default_scoring_layers(encoder)
    hidden, end = encoder.embed_tokens(ids), ids.argmax(-1)
    rows = torch.arange(len(ids), device=ids.device)
    for block in blocks[:-layers]:
        hidden = block(hidden, attn_mask=encoder.clip.attn_mask)
    kept = []
    for block in blocks[-layers:]:
        attn = block.attn
        q, k, v = F.linear(block.ln_1(hidden), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + encoder.clip.attn_mask).softmax(-1)
        output = weights @ v
        kept.append((output, k, q, v, weights))
        hidden = hidden + attn.out_proj(output)
        hidden = hidden + block.mlp(block.ln_2(hidden))
    text = F.normalize(encoder.project_text(hidden[rows, end]), dim=-1)
    similarity = F.normalize(image.detach(), dim=-1) @ text.T  # (B, B)
    one = torch.eye(len(ids), device=ids.device)
    total = torch.zeros(ids.shape, device=ids.device)
    for output, k, q, v, weights in kept:
        (gradient,) = torch.autograd.grad(similarity, output, grad_outputs=one, retain_graph=True)
        at_end = gradient[rows, end][:, None]  # (B, 1, W)
        weight = F.cosine_similarity(q[rows, end][:, None], k, dim=-1)
        total = total + (at_end * v).sum(-1) * weight * weights[rows, end]
    return total.detach().relu()


def reference_losses(
    encoder: DualEncoder,
    decoder: CrossModalDecoder,
    batch: RetrievalBatch,
    copies: DualMask,
    image: Tensor,
    image_tokens: Tensor,
) -> tuple[Tensor, Tensor]:
    """SDM and masked-token prediction without trimming, with logits at every position; image as `encode_image` returns it."""
    end = batch["ids"].argmax(-1)
    rows = torch.arange(len(end), device=end.device)
    matching = all_positions(encoder, copies.noise_ids)[rows, end]
    sdm = similarity_distribution_matching(image, matching, batch["identities"])
    everywhere = torch.ones_like(copies.labels, dtype=torch.bool)
    text = all_positions(encoder, copies.prediction_ids)
    logits = decoder(text, image_tokens, ~everywhere, everywhere).float()  # (B 77, vocabulary)
    return sdm, F.cross_entropy(logits, copies.labels.flatten(), ignore_index=0)


def all_positions(encoder: DualEncoder, ids: Tensor) -> Tensor:
    """The projected features of all tokens, (B, 77, D)."""
    hidden = encoder.clip.transformer(encoder.embed_tokens(ids), attn_mask=encoder.clip.attn_mask)
    return encoder.project_text(hidden)


class Step:
    """A task with its own optimiser; a call makes one step."""

    def __init__(self, task: RetrievalTask, loss: Callable[[RetrievalTask], Tensor]) -> None:
        self.task, self.loss = task.train(), loss
        self.optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-6, foreach=True)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.task).backward()
        self.optimizer.step()


def steps(encoder: DualEncoder, batch: RetrievalBatch) -> dict[str, Step]:
    """A step of each method, each with its own weights."""
    size = len(batch["ids"])
    stored: dict[int, Any] = {}

    def task(method: str) -> RetrievalTask:
        config = RetrievalConfig(name=method)  # type: ignore[arg-type]
        return RetrievalTask(deepcopy(encoder), config, captions=size).to(batch["ids"].device)

    def reference(task: RetrievalTask) -> Tensor:
        assert task.decoder is not None
        image, image_tokens = task.encoder.encode_image(batch["pixels"])
        for row, score in enumerate(released_scores(task.encoder, batch["ids"], image)):
            stored[row] = score.cpu().numpy()
        unknown = torch.full(batch["ids"].shape, -1.0, device=batch["ids"].device)
        copies = dual_mask(batch["ids"], unknown, mask_id=task.encoder.tokenizer.mask_id, seed=0, step=0)
        sdm, mtp = reference_losses(task.encoder, task.decoder, batch, copies, image, image_tokens)
        return sdm + 0.4 * mtp

    ours = {name: Step(task(name), lambda one: one(batch, 0)["loss"]) for name in METHODS[:-1]}
    return {**ours, "reference": Step(task("random"), reference)}


def main() -> None:
    from rich.table import Table

    from pipelines.terminal.console import TableConsole

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--words", type=int, nargs="+", default=[24, 80])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    small = options.architecture == "small"
    encoder = DualEncoder.create(SMALL if small else options.architecture, image_size=None if small else (384, 128))
    encoder.to(device)
    rows = []
    table = Table(title=f"A step of {options.architecture}, batch {options.batch}, on {describe(device)['device']}")
    for heading in ("words", "longest", "method", "seconds", "x contrastive", "reference / it"):
        table.add_column(heading, justify="right")
    for words in options.words:
        batch: Any = {k: v.to(device) for k, v in random_batch(encoder, options.batch, words).items()}  # type: ignore[attr-defined]
        longest = int(batch["ids"].argmax(-1).max()) + 1
        timings = take_turns(steps(encoder, batch), device, rounds=options.rounds, budget=60)
        for name in METHODS:
            minimum = timings[name].minimum
            relative = minimum / timings["contrastive"].minimum
            faster = timings["reference"].minimum / minimum
            rows.append({"words": words, "longest": longest, "method": name, "seconds": list(timings[name].seconds)})
            table.add_row(str(words), str(longest), name, f"{minimum:.2f}", f"{relative:.2f}", f"{faster:.2f}")
    TableConsole().print(table)
    if options.json:
        save(options.json, device, rows)


if __name__ == "__main__":
    main()
