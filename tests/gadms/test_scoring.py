"""Every score by name: what holds for all of them, and each against a second way to get it."""

from typing import get_args

import pytest
import torch
from scipy.stats import rankdata
from torch.nn import functional as F

from components.errors import ParameterError
from components.gadms.config import ScoreName, ScoringConfig
from components.gadms.masking import maskable
from components.gadms.scores.gradient import end_token_maps
from components.gadms.scores.leave_one_out import leave_one_out, path
from components.gadms.scores.normalisation import normalise
from components.gadms.scores.scoring import SCORES, ScoreInputs, raw_scores, token_scores

NAMES = ("gradient", "released", "grad-eclip", "max-patch", "attention", "random", "leave-one-out", "path")


@pytest.fixture
def lively(encoder):
    """Random weights as lively as trained ones: with the small initial ones all tokens of a caption look alike."""
    with torch.no_grad():
        encoder.clip.token_embedding.weight *= 50
        for block in encoder.clip.transformer.resblocks:
            block.attn.in_proj_weight *= 3
    return encoder


@pytest.fixture
def pictures(lively, pixels):
    with torch.no_grad():
        return lively.encode_image(pixels)


def test_the_table_has_a_line_for_every_name_that_a_configuration_may_have():
    assert set(SCORES) == set(get_args(ScoreName)) == {*NAMES, "likelihood", "truth"}


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_a_number_in_the_unit_interval_on_words_only(lively, ids, pictures, name):
    valid = maskable(ids, lively.tokenizer.mask_id)
    for rule in (None, "max", "signed", "rank", "quantile"):
        scores = token_scores(lively, ids, *pictures, ScoringConfig(name=name, layers=3, normalisation=rule))
        assert scores.dtype == torch.float32
        assert scores.shape == ids.shape
        assert ((scores >= 0) & (scores <= 1)).all()
        assert (scores[~valid] == 0).all()
        assert scores[valid].unique().numel() > 5


@pytest.mark.parametrize("name", NAMES)
def test_scoring_leaves_no_gradient_and_is_the_same_in_every_mode(lively, ids, pictures, name):
    config = ScoringConfig(name=name, layers=3)  # not "rank": it would hide small differences
    expected = token_scores(lively, ids, *pictures, config)
    assert not expected.requires_grad
    with torch.no_grad():
        assert torch.equal(token_scores(lively, ids, *pictures, config), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_scores(lively, ids, *pictures, config), expected)
        raw = raw_scores(ScoreInputs(lively, ids, *pictures, config))  # which training reads
    assert torch.equal(raw, raw_scores(ScoreInputs(lively, ids, *pictures, config)))
    lively.eval()
    assert torch.equal(token_scores(lively, ids, *pictures, config), expected)
    lively.train().requires_grad_(False)
    torch.testing.assert_close(token_scores(lively, ids, *pictures, config), expected)
    lively.requires_grad_(True)
    assert all(parameter.grad is None for parameter in lively.parameters())


def scored_alone(encoder, ids, pictures, config):
    image, image_tokens = pictures
    rows = [slice(row, row + 1) for row in range(len(ids))]
    return torch.cat([token_scores(encoder, ids[r], image[r], image_tokens[r], config) for r in rows])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "released"])
def test_a_captions_score_does_not_depend_on_its_batch(lively, ids, pictures, name):
    config = ScoringConfig(name=name, layers=3)
    together = token_scores(lively, ids, *pictures, config)
    torch.testing.assert_close(together, scored_alone(lively, ids, pictures, config), atol=2e-4, rtol=0)


def test_the_released_score_does_depend_on_its_batch(lively, ids, pictures):
    config = ScoringConfig(name="released", layers=3)
    together = token_scores(lively, ids, *pictures, config)
    assert (together - scored_alone(lively, ids, pictures, config)).abs().max() > 0.1


def released_reference(encoder, ids, image, layers):
    """Steps 1 to 7 of the released code in float64: every token in the graph, one gradient a layer, no trick."""
    clip, rows = encoder.clip, torch.arange(len(ids))
    end, hidden = ids.argmax(-1), encoder.embed_tokens(ids)
    blocks, recorded = list(clip.transformer.resblocks), []
    for number, block in enumerate(blocks):
        q, k, v = F.linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        heads = 1 if number >= len(blocks) - layers else block.attn.num_heads
        a, b, c = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        attention = (a @ b.mT * a.shape[-1] ** -0.5 + clip.attn_mask).softmax(-1)
        output = (attention @ c).transpose(1, 2).flatten(2)
        recorded.append((output, q, k, v, attention[:, 0]))
        hidden = hidden + block.attn.out_proj(output)
        hidden = hidden + block.mlp(block.ln_2(hidden))
    text = F.normalize(encoder.project_text(hidden)[rows, end], dim=-1)
    similarity = F.normalize(image, dim=-1) @ text.T
    places = torch.arange(ids.shape[1])
    valid = (places > 0) & (places < end[:, None])
    total = torch.zeros(ids.shape, dtype=image.dtype)
    for output, q, k, v, attention in recorded[-layers:]:
        gradient = torch.autograd.grad(similarity, output, torch.eye(len(ids), dtype=image.dtype), retain_graph=True)[0]
        pooled_q, pooled_k = (
            torch.stack([torch.stack([released_pooling(row, scale) for row in part]) for scale in (1, 2)]).mean(0)
            for part in (q, k)
        )
        for row in range(len(ids)):
            cosine = F.cosine_similarity(pooled_q[row, end[row]][None], pooled_k[row], dim=-1)
            weight = (cosine - cosine.min()) / (cosine.max() - cosine.min() + 1e-8)
            raw = weight * (gradient[row, end[row]] * v[row]).sum(-1)
            share = attention[row, end[row]] * valid[row] / (raw.sum() + 1e-8)
            total[row] += raw * valid[row] * share
    score = total.relu() * valid
    return ((score - score.min()) / (score.max() - score.min())).detach()


def released_pooling(tokens, scale):
    groups = torch.stack([part.mean(0) for part in tokens.split(scale)])
    return F.interpolate(groups.T[None], size=len(tokens), mode="linear", align_corners=False)[0].T


@pytest.mark.parametrize("layers", [1, 3])
def test_the_released_score_equals_the_released_steps_in_double_precision(lively, ids, pictures, layers):
    image, image_tokens = pictures
    lively.double()
    config = ScoringConfig(name="released", layers=layers)
    found = token_scores(lively, ids, image.double(), image_tokens.double(), config)
    expected = released_reference(lively, ids, image.double(), layers)
    assert expected.count_nonzero() > 4
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=0)


def test_attention_alone_is_what_the_attention_module_says(lively, ids, pictures):
    raw = raw_scores(ScoreInputs(lively, ids, *pictures, ScoringConfig(name="attention", layers=2)))
    blocks, hidden = list(lively.clip.transformer.resblocks), lively.embed_tokens(ids)
    mask, rows, end = lively.clip.attn_mask, torch.arange(len(ids)), ids.argmax(-1)
    shares = []
    for block in blocks:
        tokens = block.ln_1(hidden)
        weights = block.attn(tokens, tokens, tokens, need_weights=True, attn_mask=mask)[1][rows, end]
        weights = weights * maskable(ids, lively.tokenizer.mask_id)
        shares.append(weights / weights.sum(-1, keepdim=True))
        hidden = block(hidden, attn_mask=mask)
    torch.testing.assert_close(raw, (shares[-1] + shares[-2]).detach() / 2, atol=1e-5, rtol=0)


def test_grad_eclip_is_gradient_times_value_weighted_by_the_plain_cosine(lively, ids, pictures):
    raw = raw_scores(ScoreInputs(lively, ids, *pictures, ScoringConfig(name="grad-eclip", layers=2)))
    maps = end_token_maps(lively, ids, pictures[0], layers=2)
    for row, end in enumerate(ids.argmax(-1).tolist()):
        expected = torch.zeros(end - 1)
        for gradient, query, key, value in zip(maps.gradients, maps.queries, maps.keys, maps.values, strict=True):
            cosine = F.cosine_similarity(query[row, end][None], key[row, 1:end], dim=-1)
            spread = cosine.max() - cosine.min()
            weight = (cosine - cosine.min()) / spread if spread > 0 else torch.ones_like(cosine)
            expected += weight * (value[row, 1:end] @ gradient[row]) / 2
        torch.testing.assert_close(raw[row, 1:end], expected.detach(), atol=1e-5, rtol=1e-3)


def test_max_patch_is_the_best_cosine_of_a_token_with_a_patch_but_not_the_class_token(lively, ids, pictures):
    raw = raw_scores(ScoreInputs(lively, ids, *pictures, ScoringConfig(name="max-patch")))
    _, tokens = lively.encode_text(ids)
    for row, place in ((0, 1), (2, 7)):
        cosines = [F.cosine_similarity(tokens[row, place], patch, dim=0) for patch in pictures[1][row, 1:]]
        torch.testing.assert_close(raw[row, place], max(cosines).detach())


def similarity(encoder, ids, image):
    with torch.no_grad():
        return F.cosine_similarity(encoder.encode_text(ids[None])[0], image[None]).item()


@pytest.mark.parametrize("rows_at_once", [3, 512])
def test_leave_one_out_is_the_drop_of_the_cosine_when_one_token_is_masked(lively, ids, pictures, rows_at_once):
    drops = leave_one_out(lively, ids, pictures[0], rows_at_once=rows_at_once)
    for row, end in enumerate(ids.argmax(-1).tolist()):
        for place in range(1, end):
            masked = ids[row].clone()
            masked[place] = lively.tokenizer.mask_id
            expected = similarity(lively, ids[row], pictures[0][row]) - similarity(lively, masked, pictures[0][row])
            assert drops[row, place].item() == pytest.approx(expected, abs=1e-5)


def test_leave_one_out_with_a_temperature_measures_the_match_against_the_other_pictures(lively, ids, pictures):
    drops = leave_one_out(lively, ids, pictures[0], temperature=0.1)
    masked = ids[:1].clone()
    masked[0, 4] = lively.tokenizer.mask_id
    with torch.no_grad():
        texts = F.normalize(lively.encode_text(torch.cat([ids[:1], masked]))[0], dim=-1)
    chances = (texts @ F.normalize(pictures[0], dim=-1).T / 0.1).softmax(-1)[:, 0]
    assert drops[0, 4].item() == pytest.approx((chances[0] / chances[1]).log().item(), abs=1e-4)


def test_the_paths_shares_add_up_to_what_masking_everything_costs(lively, ids, pictures):
    everything = torch.where(maskable(ids, lively.tokenizer.mask_id), lively.tokenizer.mask_id, ids)
    cost = torch.tensor([similarity(lively, *pair) for pair in zip(ids, pictures[0], strict=True)])
    bare = torch.tensor([similarity(lively, *pair) for pair in zip(everything, pictures[0], strict=True)])
    errors = []
    for points in (2, 40):
        total = path(lively, ids, pictures[0], points=points).sum(-1)
        errors.append((total - cost + bare).abs().max().item())
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 4
    assert (cost - bare).abs().max() > 0.1


def test_one_point_of_the_path_is_the_gradient_half_way_to_the_mask(lively, ids, pictures):
    found = path(lively, ids[1:2], pictures[0][1:2], points=1)[0]
    length = int(ids[1].argmax()) + 1
    with torch.no_grad():
        tokens = lively.clip.token_embedding(ids[1, :length])
        mask = lively.clip.token_embedding.weight[lively.tokenizer.mask_id]
    step = 1e-3
    for place in (1, 4):
        sides = []
        for sign in (1, -1):
            moved = tokens.clone()
            moved[1:-1] = (tokens[1:-1] + mask) / 2
            moved[place] += sign * step * (tokens[place] - mask)
            with torch.no_grad():
                hidden = moved[None] + lively.clip.positional_embedding[:length]
                hidden = lively.clip.transformer(hidden, attn_mask=lively.clip.attn_mask[:length, :length])
                text = lively.project_text(hidden[0, -1])
            sides.append(F.cosine_similarity(text, pictures[0][1], dim=0).item())
        assert found[place].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=2e-3)


def test_random_scores_change_with_step_and_seed_but_not_with_the_batch(ids, lively, pictures):
    def drawn(**where):
        return token_scores(lively, ids, *pictures, ScoringConfig(name="random"), **where)

    assert torch.equal(drawn(seed=1, step=2), drawn(seed=1, step=2))
    assert not torch.equal(drawn(seed=1, step=2), drawn(seed=1, step=3))
    assert not torch.equal(drawn(seed=1, step=2), drawn(seed=2, step=2))


def test_ranks_and_quantiles_equal_scipys():
    raw = torch.tensor([[9.0, -1.0, 3.0, 3.0, 0.0, 7.0], [9.0, 2.0, 8.0, 8.0, 8.0, 8.0]])
    valid = torch.tensor([[False, True, True, True, True, False], [False, True, False, False, False, False]])
    rank = normalise(raw, valid, "rank")
    torch.testing.assert_close(rank[0, 1:5], torch.from_numpy((rankdata(raw[0, 1:5]) - 1) / 3).float())
    assert rank[1, 1] == 0.5
    quantile = normalise(raw, valid, "quantile")
    expected = torch.from_numpy((rankdata(raw[valid]) - 0.5) / 5).float()
    torch.testing.assert_close(quantile[valid], expected)


def test_dividing_by_the_largest_cuts_negative_values_and_leaves_a_hopeless_caption_at_zero():
    raw = torch.tensor([[2.0, -4.0, 1.0], [-1.0, -2.0, -3.0]])
    scores = normalise(raw, torch.ones(2, 3, dtype=torch.bool), "max")
    assert scores.tolist() == [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]
    signed = normalise(raw, torch.ones(2, 3, dtype=torch.bool), "signed")
    torch.testing.assert_close(signed, torch.tensor([[0.75, 0.0, 0.625], [1 / 3, 1 / 6, 0.0]]))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_caption_scores_zero(lively, tokenizer, pictures, name):
    empty = tokenizer(["", "red"])
    scores = token_scores(lively, empty, pictures[0][:2], pictures[1][:2], ScoringConfig(name=name, layers=3))
    assert (scores[0] == 0).all()
    assert torch.isfinite(scores).all()


def test_settings_that_mean_nothing_are_refused(lively, ids, pictures):
    with pytest.raises(ParameterError, match="name = 'gradcam': input should be 'gradient'"):
        ScoringConfig(name="gradcam")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="points = 0"):
        ScoringConfig(name="path", points=0)
    with pytest.raises(ParameterError, match="temperature = 0"):
        ScoringConfig(temperature=0.0)
    with pytest.raises(ParameterError, match="observed while a decoder trains"):
        token_scores(lively, ids, *pictures, ScoringConfig(name="likelihood"))
