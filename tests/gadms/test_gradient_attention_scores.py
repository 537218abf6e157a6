import pytest
import torch
from attention_reference import pool_reference, signed_reference

from components.errors import ParameterError
from components.gadms.config import ScoringConfig
from components.gadms.scores.gradient import multi_scale_pool
from components.gadms.scores.scoring import gradient_attention_scores, token_scores


@pytest.fixture
def encoder(encoder):
    """Random weights as lively as trained ones: with the small initial ones all tokens of a caption look alike."""
    with torch.no_grad():
        encoder.clip.token_embedding.weight *= 50
        for block in encoder.clip.transformer.resblocks:
            block.attn.in_proj_weight *= 3
    return encoder


def score_reference(encoder, ids, image, layers, scales, single_head=False):
    """One caption: the equations as they are written."""
    total = signed_reference(encoder, ids, image, layers, scales, single_head).relu()
    score = torch.zeros(len(ids), dtype=image.dtype)
    score[1 : 1 + len(total)] = total / total.max() if total.max() > 0 else total
    return score


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("layers", "scales", "heads"), [(2, (1, 2), "model"), (3, (1,), "model"), (1, (1, 2, 3), "single")]
)
def test_scores_equal_full_autograd_over_every_token(encoder, ids, pixels, layers, scales, heads, precision):
    encoder.to(precision)
    image = encoder.encode_image(pixels.to(precision))[0].detach()
    scores = gradient_attention_scores(encoder, ids, image, layers=layers, scales=scales, heads=heads)
    assert scores.count_nonzero() > 8
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-3}[precision]  # fp32: rounding of a division by small spreads
    encoder.double()
    for row in range(len(ids)):
        expected = score_reference(encoder, ids[row], image[row].double(), layers, scales, heads == "single")
        torch.testing.assert_close(scores[row].double(), expected, atol=tolerance, rtol=0)


def test_a_caption_scores_the_same_whatever_it_is_batched_with(encoder, ids, pixels):
    image, _ = encoder.encode_image(pixels)
    together = gradient_attention_scores(encoder, ids, image)
    for row in range(len(ids)):
        alone = gradient_attention_scores(encoder, ids[row : row + 1], image[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


def test_training_computes_the_very_same_scores(encoder, ids, pixels):
    image, image_tokens = encoder.encode_image(pixels)
    config = ScoringConfig("gradient", layers=2, scales=(1, 3))
    public = gradient_attention_scores(encoder, ids, image, layers=2, scales=(1, 3))
    assert torch.equal(public, token_scores(encoder, ids, image, image_tokens, config))


def test_scores_lie_in_the_unit_interval_and_on_words_only(encoder, ids, pixels):
    scores = gradient_attention_scores(encoder, ids, encoder.encode_image(pixels)[0])
    positions = torch.arange(77)
    outside = (positions == 0) | (positions >= ids.argmax(-1, keepdim=True))
    assert scores.dtype == torch.float32
    assert (scores[outside] == 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores[:3].amax(-1) == 1).all()


def test_scoring_leaves_no_gradient_and_no_graph_even_under_no_grad(encoder, ids, pixels):
    with torch.no_grad():
        scores = gradient_attention_scores(encoder, ids, encoder.encode_image(pixels)[0])
    assert not scores.requires_grad
    assert all(parameter.grad is None for parameter in encoder.parameters())
    encoder.requires_grad_(False)
    frozen = gradient_attention_scores(encoder, ids, encoder.encode_image(pixels)[0])
    torch.testing.assert_close(frozen, scores)


def test_an_empty_caption_scores_zero_and_not_nan(encoder, tokenizer, pixels):
    scores = gradient_attention_scores(encoder, tokenizer(["", "red"]), encoder.encode_image(pixels[:2])[0])
    assert (scores[0] == 0).all()
    assert torch.isfinite(scores).all()


def test_more_scoring_layers_than_the_tower_has_are_refused(encoder, ids, pixels):
    with pytest.raises(ParameterError, match="has 3"):
        gradient_attention_scores(encoder, ids, encoder.encode_image(pixels)[0], layers=4)


def test_pooling_equals_the_numbers_of_the_released_code():
    ramp = torch.arange(5.0)[None, :, None]
    count = torch.tensor([5])
    both = (multi_scale_pool(ramp, count, 1) + multi_scale_pool(ramp, count, 2)) / 2
    torch.testing.assert_close(both[0, :, 0], torch.tensor([0.25, 1.15, 2.25, 3.20, 4.00]))
    impulse = torch.tensor([0, 0, 4.0, 0, 0, 0])[None, :, None]
    count = torch.tensor([6])
    both = (multi_scale_pool(impulse, count, 1) + multi_scale_pool(impulse, count, 2)) / 2
    torch.testing.assert_close(both[0, :, 0], torch.tensor([0, 0.25, 2.75, 0.75, 0.25, 0]))


@pytest.mark.parametrize("scale", [2, 3])
def test_pooling_uses_each_captions_own_tokens(scale):
    tokens = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0))
    count = torch.tensor([9, 4, 1])
    pooled = multi_scale_pool(tokens, count, scale)
    for row, length in enumerate(count.tolist()):
        torch.testing.assert_close(pooled[row, :length], pool_reference(tokens[row, :length], scale))
        assert (pooled[row, length:] == 0).all()
