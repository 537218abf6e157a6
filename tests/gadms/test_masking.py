import pytest
import torch

from components.errors import ParameterError
from components.gadms.config import MaskingConfig
from components.gadms.masking import calibrated_threshold, dual_mask, maskable, masking_probabilities
from components.gadms.score_memory import ScoreTable

MASK, END = 97, 99


def captions(rows: int) -> torch.Tensor:
    """start, 60 ordinary tokens, end, padding."""
    ids = torch.zeros(rows, 77, dtype=torch.long)
    ids[:, 0], ids[:, 61] = 98, END
    ids[:, 1:61] = torch.randint(1, MASK, (rows, 60), generator=torch.Generator().manual_seed(1))
    return ids


def test_probabilities_equal_the_numbers_of_the_paper_and_the_released_code():
    noise, prediction = masking_probabilities(torch.tensor([[0.0, 0.1, 1.0]]), MaskingConfig())
    torch.testing.assert_close(noise, torch.tensor([[0.1762, 0.10, 3e-9]]), atol=5e-5, rtol=0)
    torch.testing.assert_close(prediction, torch.tensor([[0.0358, 0.15, 0.30]]), atol=5e-5, rtol=0)


@pytest.mark.parametrize("score", [0.0, 0.05, 0.1, 0.5])
def test_tokens_are_masked_as_often_as_their_score_says(score):
    ids = captions(2000)
    drawn = dual_mask(ids, torch.full(ids.shape, score), mask_id=MASK, seed=0, step=0)
    noise, prediction = masking_probabilities(torch.tensor([[score]]), MaskingConfig())
    for rate, expected in ((drawn.noise_rate, noise), (drawn.prediction_rate, prediction)):
        spread = (expected.item() * (1 - expected.item()) / 120_000) ** 0.5
        assert abs(rate.item() - expected.item()) < 4.5 * spread + 1e-9


def random_mask(ids, **settings):
    return dual_mask(ids, torch.full(ids.shape, -1.0), mask_id=MASK, seed=0, **settings)


def test_only_words_are_masked_and_the_raw_captions_stay():
    ids = captions(64)
    before = ids.clone()
    config = MaskingConfig(random_noise_rate=1.0, random_prediction_rate=1.0)
    drawn = random_mask(ids, step=0, config=config)
    assert torch.equal(ids, before)
    for copy in (drawn.noise_ids, drawn.prediction_ids):
        assert (copy[:, 1:61] == MASK).all()
        assert torch.equal(copy[:, [0, *range(61, 77)]], before[:, [0, *range(61, 77)]])
    assert torch.equal(drawn.labels[:, 1:61], before[:, 1:61])
    assert drawn.labels.count_nonzero() == 64 * 60


def test_nothing_is_masked_at_rate_zero():
    ids = captions(8)
    config = MaskingConfig(random_noise_rate=0.0, random_prediction_rate=0.0)
    drawn = random_mask(ids, step=0, config=config)
    assert torch.equal(drawn.noise_ids, ids)
    assert torch.equal(drawn.prediction_ids, ids)
    assert not drawn.labels.any()


def test_the_first_word_is_masked_where_none_was_chosen_if_asked_for():
    ids = captions(400)
    ids[0] = 0
    ids[0, :2] = torch.tensor([98, END])  # an empty caption
    for rate in (0.0, 0.02):
        rates = {"random_noise_rate": rate, "random_prediction_rate": rate, "noise_replacement": "bert"}
        plain = random_mask(ids, step=3, config=MaskingConfig(**rates))
        forced = random_mask(ids, step=3, config=MaskingConfig(**rates, mask_first=True))
        for copy in ("noise", "prediction"):
            expected, chosen = getattr(plain, f"{copy}_ids").clone(), getattr(plain, f"{copy}_chosen").clone()
            for row in range(1, len(ids)):
                if not chosen[row].any():
                    expected[row, 1], chosen[row, 1] = MASK, True
            assert torch.equal(getattr(forced, f"{copy}_ids"), expected)
            assert torch.equal(getattr(forced, f"{copy}_chosen"), chosen)
        assert torch.equal(forced.labels, ids * forced.prediction_chosen)
    assert 0 < plain.noise_chosen.any(1).float().mean() < 1


def test_the_bert_rule_keeps_its_shares_and_never_moves_the_end():
    ids = captions(2000)
    config = MaskingConfig(random_prediction_rate=1.0, prediction_replacement="bert")
    drawn = random_mask(ids, step=3, config=config)
    words = drawn.prediction_ids[:, 1:61]
    masked, kept = (words == MASK).float().mean(), (words == ids[:, 1:61]).float().mean()
    assert abs(masked - 0.8) < 0.01
    assert abs(kept - 0.1 - 0.1 / 96) < 0.01
    assert torch.equal(drawn.prediction_ids.argmax(-1), ids.argmax(-1))
    assert words.min() >= 1
    assert words.max() <= MASK
    assert (drawn.labels[:, 1:61] == ids[:, 1:61]).all()


def test_a_caption_never_scored_is_masked_at_the_random_rates_and_no_other():
    ids = captions(2000)
    scores = torch.zeros(ids.shape)
    scores[::2] = -1
    drawn = dual_mask(ids, scores, mask_id=MASK, seed=0, step=0)
    assert abs(drawn.noise_chosen[::2, 1:61].float().mean() - 0.15) < 0.007
    assert abs(drawn.prediction_chosen[::2, 1:61].float().mean() - 0.15) < 0.007
    assert abs(drawn.prediction_chosen[1::2, 1:61].float().mean() - 0.0358) < 0.004


def test_single_tokens_can_be_unknown():
    scores = torch.tensor([[0.9, -1.0, 0.9]])
    noise, prediction = masking_probabilities(scores, MaskingConfig())
    torch.testing.assert_close(noise, torch.tensor([[0.0, 0.15, 0.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(prediction, torch.tensor([[0.3, 0.15, 0.3]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("target", [0.01, 0.05, 0.15, 0.19])
def test_a_target_rate_is_met_whatever_the_spread_of_the_scores(target):
    ids = captions(2000)
    config = MaskingConfig(target_noise_rate=target)
    random = torch.Generator().manual_seed(3)
    for spread in (0.02, 1.0):
        scores = spread * torch.rand(ids.shape, generator=random)
        scores[::4] = -1  # unknown captions keep the random rate and do not count
        drawn = dual_mask(ids, scores, mask_id=MASK, seed=0, step=0, config=config)
        rate = drawn.noise_chosen[scores >= 0].sum() / maskable(ids, MASK)[scores >= 0].sum()
        assert abs(rate.item() - target) < 4.5 * (target / 90_000) ** 0.5
        assert abs(drawn.noise_chosen[::4, 1:61].float().mean() - 0.15) < 0.01


def test_the_calibrated_threshold_moves_both_copies_and_is_the_plain_one_without_target_or_scores():
    ids = captions(4)
    scores, valid = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)), maskable(ids, MASK)
    config = MaskingConfig(target_noise_rate=0.1)
    threshold = calibrated_threshold(scores, valid, config)
    noise, prediction = masking_probabilities(scores, config, valid, threshold)
    torch.testing.assert_close(noise[valid].mean(), torch.tensor(0.1), atol=1e-5, rtol=0)
    torch.testing.assert_close(noise / 0.2 + prediction / 0.3, torch.ones_like(noise))
    assert calibrated_threshold(scores, valid, MaskingConfig()).item() == pytest.approx(0.1)
    assert calibrated_threshold(scores * 0 - 1, valid, config).item() == pytest.approx(0.1)


def test_the_rule_of_nam_gives_each_caption_its_rate_and_the_worse_tokens_more_of_it():
    ids = captions(1500)
    scores = 0.25 + 0.1 * torch.rand(ids.shape, generator=torch.Generator().manual_seed(5))
    config = MaskingConfig(rule="nam")
    noise, prediction = masking_probabilities(scores, config, maskable(ids, MASK))
    for row in range(3):  # clip(rate + (1 - s) - mean(1 - s), 0, 1), as it is written, over the caption's tokens
        badness = [1 - value for value in scores[row, 1:61].tolist()]
        expected = [min(1, max(0, 0.15 + value - sum(badness) / 60)) for value in badness]
        torch.testing.assert_close(noise[row, 1:61], torch.tensor(expected), atol=1e-6, rtol=0)
    assert (prediction == 0.15).all()
    drawn = dual_mask(ids, scores, mask_id=MASK, seed=0, step=0, config=config)
    assert abs(drawn.noise_rate - 0.15) < 0.006
    stricter = dual_mask(
        ids, scores, mask_id=MASK, seed=0, step=0, config=MaskingConfig(rule="nam", target_noise_rate=0.4)
    )
    assert abs(stricter.noise_rate - 0.4) < 0.008


def test_masks_depend_on_seed_and_step_and_not_on_the_number_of_ranks():
    ids, scores = captions(8), torch.rand(8, 77, generator=torch.Generator().manual_seed(2))
    whole = dual_mask(ids, scores, mask_id=MASK, seed=4, step=7)
    for rank in range(2):
        rows = slice(4 * rank, 4 * rank + 4)
        part = dual_mask(ids[rows], scores[rows], mask_id=MASK, seed=4, step=7, rank=rank, world_size=2)
        assert torch.equal(part.noise_ids, whole.noise_ids[rows])
        assert torch.equal(part.prediction_ids, whole.prediction_ids[rows])
    again = dual_mask(ids, scores, mask_id=MASK, seed=4, step=7)
    other = dual_mask(ids, scores, mask_id=MASK, seed=4, step=8)
    assert torch.equal(again.noise_ids, whole.noise_ids)
    assert not torch.equal(other.prediction_ids, whole.prediction_ids)


def test_an_empty_caption_has_nothing_to_mask():
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, 0], ids[0, 1] = 98, END
    assert not maskable(ids, MASK).any()
    drawn = random_mask(ids, step=0)
    assert drawn.noise_rate == 0


def test_settings_out_of_range_are_refused():
    with pytest.raises(ParameterError, match=r"noise_limit = 1\.5"):
        MaskingConfig(noise_limit=1.5)
    with pytest.raises(ParameterError, match=r"target_noise_rate = 0\.2: must lie in \(0, 0\.2\)"):
        MaskingConfig(target_noise_rate=0.2)
    with pytest.raises(ParameterError, match="'sigmoid' or 'nam'"):
        MaskingConfig(rule="css")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="slope = 0"):
        MaskingConfig(slope=0)
    with pytest.raises(ParameterError, match="noise_replacement = 'drop': input should be 'mask' or 'bert'"):
        MaskingConfig(noise_replacement="drop")  # type: ignore[arg-type]


def test_the_score_table_remembers_per_caption_and_survives_a_checkpoint():
    table = ScoreTable(5, 77)
    assert (table.lookup(torch.tensor([0, 3])) == -1).all()
    scores = torch.rand(2, 77, generator=torch.Generator().manual_seed(0))
    table.update(torch.tensor([3, 1]), scores)
    restored = ScoreTable(5, 77)
    restored.load_state_dict(table.state_dict())
    torch.testing.assert_close(restored.lookup(torch.tensor([1, 3])), scores.flip(0), atol=0.5 / 254 + 1e-6, rtol=0)
    assert (restored.lookup(torch.tensor([0, 2, 4])) == -1).all()
