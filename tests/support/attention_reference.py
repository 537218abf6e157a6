"""The gradient-attention score of one caption by its equations, to compare the fast one with."""

import torch
from torch.nn import functional as F


def pool_reference(tokens, scale):
    """Group means, then torch's own interpolation: one caption (n, D)."""
    groups = torch.stack([part.mean(0) for part in tokens.split(scale)])
    return F.interpolate(groups.T[None], size=len(tokens), mode="linear", align_corners=False)[0].T


def signed_reference(encoder, ids, image, layers, scales, single_head=False):
    """The mean over layers of S_g S_a, signed, of one caption's tokens (n,): every token is in the graph of ordinary autograd."""
    clip = encoder.clip
    end = int(ids.argmax())
    hidden = encoder.embed_tokens(ids[None])[0]  # all 77 positions
    recorded = []
    blocks = list(clip.transformer.resblocks)
    for number, block in enumerate(blocks):
        query, key, value = F.linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(
            3, -1
        )
        heads = 1 if single_head and number >= len(blocks) - layers else block.attn.num_heads
        split = [part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in (query, key, value)]
        attention = (split[0] @ split[1].mT / split[0].shape[-1] ** 0.5 + clip.attn_mask).softmax(-1)
        output = (attention @ split[2]).transpose(0, 1).flatten(1)
        recorded.append((output, query, key, value, attention.mean(0)))
        hidden = hidden + block.attn.out_proj(output)
        hidden = hidden + block.mlp(block.ln_2(hidden))
    similarity = F.cosine_similarity(encoder.project_text(hidden)[end], image, dim=0)
    gradients = torch.autograd.grad(similarity, [entry[0] for entry in recorded[-layers:]])
    total = torch.zeros(end - 1, dtype=image.dtype)
    for gradient, (_, query, key, value, attention) in zip(gradients, recorded[-layers:], strict=True):
        words = slice(1, end)
        pooled = torch.stack([pool_reference(key[words], scale) for scale in scales]).mean(0)
        cosine = F.cosine_similarity(query[end][None], pooled, dim=-1)
        spread = cosine.max() - cosine.min()
        weight = (cosine - cosine.min()) / spread if spread > 0 else torch.ones_like(cosine)
        share = attention[end, words] / attention[end, words].sum()
        total += (gradient[end] * weight[:, None] * value[words]).sum(-1) * share
    return (total / layers).detach()
