"""The split attention against an explicit float64 softmax over the whole score matrix."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from components.errors import ParameterError
from components.taca.attention import adjusted_attention, temperature_adjusted_attention
from components.taca.placement import Contiguous

BATCH, TEXT, IMAGE, HEADS, DIM = 2, 5, 14, 3, 8
LENGTH = TEXT + IMAGE
FIRST, LAST = slice(0, TEXT), slice(IMAGE, LENGTH)


def explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gamma: Tensor | float,
    text: slice,
    mask: Tensor | None = None,
    scale: float | None = None,
    effect: str = "temperature",
    queries: str = "image",
) -> Tensor:
    """Eq. 10 as written: scale the image-query x text-key block of the logits, one softmax over each row.

    The control arms add log(gamma) to that block, or act on the block of text queries x image keys.
    """
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) * (scale or 1 / math.sqrt(query.shape[-1]))
    is_text = torch.zeros(key.shape[1], dtype=torch.bool)
    is_text[text] = True
    block = (~is_text)[:, None] & is_text[None, :]  # (S, S)
    if isinstance(gamma, Tensor) and gamma.ndim == 4 and queries == "image":  # (B, T, H, 1) -> (B, H, 1, S)
        factor = torch.ones(query.shape[0], key.shape[1], query.shape[2], 1, dtype=query.dtype).expand_as(key[..., :1])
        factor = torch.where(is_text[:, None, None], _over_sequence(gamma, key, text), factor)
        gamma = factor.permute(0, 2, 3, 1)
    if queries == "text":
        block = block.T
    if effect == "bias":
        logits = torch.where(block, logits + torch.as_tensor(gamma, dtype=logits.dtype).log(), logits)
    else:
        logits = torch.where(block, logits * gamma, logits)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), value)


def _over_sequence(gamma: Tensor, key: Tensor, text: slice) -> Tensor:
    full = torch.ones(key.shape[0], key.shape[1], key.shape[2], 1, dtype=gamma.dtype)
    inside = gamma.expand(key.shape[0], TEXT, key.shape[2], 1)
    return torch.cat([full[:, : text.start], inside, full[:, text.stop :]], dim=1)


def qkv(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    query, key, value = (
        2 * torch.randn(BATCH, LENGTH, HEADS, DIM, generator=source, dtype=torch.float64) for _ in range(3)
    )
    return query.to(dtype), key.to(dtype), value.to(dtype)


def gammas() -> dict[str, Tensor | float]:
    source = torch.Generator().manual_seed(1)
    return {
        "number": 1.2,
        "below one": 0.7,
        "scalar tensor": torch.tensor(1.5, dtype=torch.float64),
        "per sample": torch.tensor([1.0, 1.4], dtype=torch.float64).view(2, 1, 1, 1),
        "per head": torch.tensor([1.0, 1.2, 1.4], dtype=torch.float64).view(1, 1, 3, 1),
        "per token and sample": 1 + torch.rand(BATCH, TEXT, 1, 1, generator=source, dtype=torch.float64),
    }


def masks() -> dict[str, Tensor | None]:
    source = torch.Generator().manual_seed(2)
    keys = torch.rand(BATCH, 1, 1, LENGTH, generator=source) > 0.3
    keys[..., [0, -1]] = True
    rows = torch.rand(BATCH, HEADS, LENGTH, LENGTH, generator=source) > 0.3
    rows[..., [0, -1]] = True
    additive = torch.randn(1, 1, LENGTH, LENGTH, generator=source, dtype=torch.float64)
    return {"none": None, "keys": keys, "rows": rows, "additive": additive}


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("gamma", gammas())
@pytest.mark.parametrize("text", [FIRST, LAST], ids=["text first", "text last"])
def test_the_split_equals_the_explicit_softmax(text: slice, gamma: str, mask: str) -> None:
    query, key, value = qkv()
    got = temperature_adjusted_attention(query, key, value, gammas()[gamma], text, attn_mask=masks()[mask])
    expected = explicit(query, key, value, gammas()[gamma], text, masks()[mask])
    assert (got - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("gamma", gammas())
@pytest.mark.parametrize("text", [FIRST, LAST], ids=["text first", "text last"])
def test_the_bias_arm_adds_a_logarithm_to_the_same_block(text: slice, gamma: str, mask: str) -> None:
    query, key, value = qkv()
    options = {"effect": "bias"}
    got = temperature_adjusted_attention(query, key, value, gammas()[gamma], text, attn_mask=masks()[mask], **options)
    expected = explicit(query, key, value, gammas()[gamma], text, masks()[mask], **options)
    assert (got - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("effect", ["temperature", "bias"])
@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("gamma", ["number", "scalar tensor", "per sample", "per head"])
@pytest.mark.parametrize("text", [FIRST, LAST], ids=["text first", "text last"])
def test_the_text_query_arm_acts_on_the_opposite_block(text: slice, gamma: str, mask: str, effect: str) -> None:
    query, key, value = qkv()
    factor = gammas()[gamma]
    got = temperature_adjusted_attention(
        query, key, value, factor, text, attn_mask=masks()[mask], effect=effect, queries="text"
    )
    whole = factor.permute(0, 2, 3, 1) if isinstance(factor, Tensor) and factor.ndim == 4 else factor  # (B, H, 1, 1)
    expected = explicit(query, key, value, whole, text, masks()[mask], effect=effect, queries="text")
    assert (got - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("text", [FIRST, LAST], ids=["text first", "text last"])
def test_gradients_of_query_key_value_and_gamma_equal_the_explicit_ones(text: slice) -> None:
    weight = torch.randn(BATCH, LENGTH, HEADS, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = []
    for attention in (temperature_adjusted_attention, explicit):
        leaves = [tensor.requires_grad_() for tensor in qkv()]
        gamma = torch.tensor([1.1, 1.6], dtype=torch.float64).view(2, 1, 1, 1).requires_grad_()
        (attention(*leaves, gamma, text) * weight).sum().backward()
        gradients.append([leaf.grad for leaf in (*leaves, gamma)])
    for got, expected in zip(*gradients, strict=True):
        assert (got - expected).abs().max() <= 1e-12


def test_a_mask_over_keys_in_two_dimensions_means_one_mask_per_sample() -> None:
    query, key, value = qkv()
    keys = masks()["keys"]
    assert keys is not None
    got = temperature_adjusted_attention(query, key, value, 1.3, FIRST, attn_mask=keys[:, 0, 0])
    assert (got - explicit(query, key, value, 1.3, FIRST, keys)).abs().max() <= 1e-12


def test_a_mask_over_rows_is_never_mistaken_for_one_over_keys() -> None:
    """Two text tokens and a batch of two: the text rows of an (S, S) mask have the shape of a (B, S) key mask."""
    query, key, value = qkv()
    rows = torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(4)) > 0.4
    rows[:, 0] = True
    got = temperature_adjusted_attention(query, key, value, 1.0 + 1e-9, slice(0, 2), attn_mask=rows)
    assert (got - explicit(query, key, value, 1.0, slice(0, 2), rows)).abs().max() <= 1e-6


def test_another_softmax_scale_is_respected() -> None:
    query, key, value = qkv()
    got = temperature_adjusted_attention(query, key, value, 1.3, LAST, scale=0.2)
    assert (got - explicit(query, key, value, 1.3, LAST, scale=0.2)).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gamma_one_is_stock_attention_bit_for_bit(dtype: torch.dtype) -> None:
    query, key, value = qkv(dtype)
    stock = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value))
    ).transpose(1, 2)
    assert torch.equal(temperature_adjusted_attention(query, key, value, 1.0, FIRST), stock)


def test_a_tensor_of_ones_is_stock_attention_to_rounding() -> None:
    """Not skipped, as reading it would wait for the device; kernels may round by the number of rows."""
    query, key, value = qkv(torch.float32)
    stock = temperature_adjusted_attention(query, key, value, 1.0, FIRST)
    got = temperature_adjusted_attention(query, key, value, torch.ones(BATCH, 1, 1, 1), FIRST)
    assert (got - stock).abs().max() < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 3e-2)])
def test_lower_precision_keeps_its_dtype_and_its_accuracy(dtype: torch.dtype, tolerance: float) -> None:
    query, key, value = qkv(dtype)
    got = temperature_adjusted_attention(query, key, value, torch.full((BATCH, 1, 1, 1), 1.2), FIRST)
    assert got.dtype == dtype
    expected = explicit(query.double(), key.double(), value.double(), 1.2, FIRST)
    assert (got.double() - expected).abs().max() <= tolerance


@pytest.mark.parametrize(
    "gamma", [1.2, torch.tensor(1.2), torch.full((1, 1, 1, 1), 1.2)], ids=["number", "scalar", "4-d"]
)
def test_gamma_is_not_rounded_to_the_keys_bfloat16(gamma: Tensor | float) -> None:
    """The text key 25 times 1.2 is the image key 30, so the image query gives each a half. In bfloat16 gamma would be 1.203125 and
    the text key 30.125; against the query 16 that is 0.88 for the text."""
    query, key, value = (torch.zeros(1, 2, 1, 8, dtype=torch.bfloat16) for _ in range(3))
    query[0, 1, 0, 0], key[0, 0, 0, 0], key[0, 1, 0, 0], value[0, 0] = 16, 25, 30, 1
    assert temperature_adjusted_attention(query, key, value, gamma, slice(0, 1), scale=1.0)[0, 1, 0, 0] == 0.5


def test_no_tensor_as_large_as_the_score_matrix_is_made() -> None:
    """Every tensor that any operation gives, in forward and backward, stays linear in the sequence length."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // tensor.element_size())
            return result

    length, heads, dim = 1536, 2, 8
    leaves = [torch.randn(1, length, heads, dim, requires_grad=True) for _ in range(3)]
    for effect in ("temperature", "bias"):
        with Watch():
            out = temperature_adjusted_attention(*leaves, torch.full((1, 1, 1, 1), 1.2), slice(0, 256), effect=effect)
            out.sum().backward()
    assert length * heads * dim <= largest < length * length / 8


@pytest.mark.parametrize("queries", ["image", "text"])
def test_the_chosen_backend_computes_both_halves(queries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models import attention_dispatch

    query, key, value = qkv(torch.float32)
    asked = []
    stock = attention_dispatch.dispatch_attention_fn

    def watched(*arguments, backend=None, **options):  # type: ignore[no-untyped-def]
        asked.append(backend)
        return stock(*arguments, backend=backend, **options)

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", watched)
    temperature_adjusted_attention(query, key, value, 1.3, FIRST, queries=queries, backend="_native_math")
    assert asked == ["_native_math", "_native_math"]


@pytest.mark.parametrize("text", [slice(0, 0), slice(LENGTH, LENGTH), slice(0, LENGTH)])
def test_a_sequence_of_one_kind_is_left_alone(text: slice) -> None:
    query, key, value = qkv()
    stock = temperature_adjusted_attention(query, key, value, 1.0, FIRST)
    assert torch.equal(temperature_adjusted_attention(query, key, value, 1.7, text), stock)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": slice(3, 8)}, "beginning or the end"),
        ({"text": slice(0, 8, 2)}, "contiguous"),
        ({"gamma": torch.ones(BATCH)}, "reshape"),
        ({"key": torch.ones(BATCH, 4, HEADS, DIM)}, "joint attention"),
        ({"parallel_config": object()}, "context parallelism"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused(change: dict, message: str) -> None:
    query, key, value = qkv()
    arguments = {"query": query, "key": key, "value": value, "gamma": 1.2, "text": FIRST} | change
    with pytest.raises(ParameterError, match=message):
        temperature_adjusted_attention(**arguments)


@pytest.mark.parametrize(("effect", "queries"), [("temperature", "image"), ("bias", "image"), ("temperature", "text")])
def test_a_text_whose_end_a_compiled_graph_does_not_know(effect: Any, queries: Any) -> None:
    """Mochi and Framepack cut the text to its length inside of the graph; one graph serves every length, also none."""

    def cut(tensor: Tensor, words: Tensor) -> Tensor:
        return torch.cat([tensor[:, :IMAGE], tensor[:, IMAGE + words.nonzero().flatten()]], dim=1)

    def attention(query: Tensor, key: Tensor, value: Tensor, words: Tensor) -> Tensor:
        query, key, value = (cut(tensor, words) for tensor in (query, key, value))

        def attend(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, value))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

        block = Contiguous(slice(IMAGE, None)).block(queries, query.shape[1], key.shape[1])
        return adjusted_attention(attend, query, key, torch.tensor(1.5, dtype=query.dtype), block, effect=effect)

    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (3, TEXT, 0):
            words = torch.arange(TEXT) < length
            cut_to = [cut(tensor, words) for tensor in qkv()]
            expected = explicit(*cut_to, 1.5, slice(IMAGE, IMAGE + length), effect=effect, queries=queries)
            torch.testing.assert_close(compiled(*qkv(), words), expected, rtol=0, atol=1e-12)
            assert torch.equal(compiled(*qkv(), words), attention(*qkv(), words))
