"""Scores and masks between visits: what is known when, what is remembered, and that ranks agree."""

from types import SimpleNamespace

import pytest
import torch
from two_processes import in_two_processes

from components.errors import ParameterError
from components.gadms.batches import CaptionBatches
from components.gadms.caption_scorer import CaptionScorer
from components.gadms.config import MaskingConfig, ScoringConfig
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.masking import dual_mask, maskable
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.noise_detection import noise_diagnostics, word_auc, word_scores
from components.gadms.score_memory import LikelihoodTable, ScoreTable
from components.gadms.scores.scoring import token_scores
from components.gadms.tasks import RetrievalTask
from components.gadms.tokenizer import CaptionTokenizer
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit

DECODER = torch.nn.Identity()  # only its presence matters to `mask`


@pytest.fixture
def batch(ids):
    wrong = torch.zeros(ids.shape, dtype=torch.bool)
    wrong[:3, 3] = True
    return {"ids": ids, "caption_index": torch.tensor([7, 0, 3, 5]), "wrong": wrong}


@pytest.fixture
def pictures(encoder, pixels):
    with torch.no_grad():
        return encoder.encode_image(pixels)


@pytest.fixture
def seen(monkeypatch):
    """The scores that masks were drawn from."""
    scores = []

    def record(ids, known, **keywords):
        scores.append(known)
        return dual_mask(ids, known, **keywords)

    monkeypatch.setattr("components.gadms.caption_scorer.dual_mask", record)
    return scores


def test_scores_of_one_visit_decide_the_masks_of_the_next(encoder, batch, pictures, seen):
    scorer = CaptionScorer(encoder, 8, scoring=ScoringConfig())
    expected = token_scores(encoder, batch["ids"], *pictures)
    shares = [scorer.mask(encoder, None, batch, *pictures, step)[1]["masked_by_score"] for step in range(2)]
    assert (seen[0] == -1).all()
    torch.testing.assert_close(seen[1], expected, atol=0.5 / 254 + 1e-6, rtol=0)
    assert shares == [0, 1]


def test_a_first_visit_can_be_masked_by_a_score_as_in_the_released_code(encoder, batch, pictures, seen):
    released = MaskingConfig(unseen_score=0.85)
    scorer = CaptionScorer(encoder, 8, scoring=ScoringConfig(), masking=released)
    shares = [scorer.mask(encoder, None, batch, *pictures, step)[1]["masked_by_score"] for step in range(2)]
    assert (seen[0] == 0.85).all()
    assert (seen[1] != 0.85).any()
    assert shares == [0, 1]  # of scores that were computed
    CaptionScorer(encoder, 8, scoring=None, masking=released).mask(encoder, None, batch, *pictures, 0)
    assert (seen[2] == -1).all()  # the control has no scores


def test_scores_of_the_same_step_decide_at_once_and_need_no_table(encoder, batch, pictures, seen):
    scorer = CaptionScorer(encoder, 8, scoring=ScoringConfig(name="path"), timing="same-step")
    _, scalars = scorer.mask(encoder, None, batch, *pictures, 0)
    assert torch.equal(seen[0], token_scores(encoder, batch["ids"], *pictures, ScoringConfig(name="path")))
    assert scalars["masked_by_score"] == 1
    assert set(scorer.state_dict()) == {"visits"}


def test_the_control_masks_at_random_and_reports_what_its_masks_hit_but_no_score(encoder, batch, pictures, seen):
    scorer = CaptionScorer(encoder, 8, scoring=None, masking=MaskingConfig(random_noise_rate=1.0))
    _, scalars = scorer.mask(encoder, None, batch, *pictures, 0)
    assert (seen[0] == -1).all()
    assert scalars["noise_rate"] == scalars["noise_recall"] == 1
    assert (
        scalars["noise_precision"]
        == scalars["wrong_share"]
        == 3 / maskable(batch["ids"], encoder.tokenizer.mask_id).sum()
    )
    assert not {"noise_auc", "masked_by_score"} & set(scalars)


def test_the_truth_masks_the_wrong_words_and_no_other_and_wants_to_know_them(encoder, batch, pictures):
    masking = MaskingConfig(noise_limit=1.0, threshold=0.5, slope=1000.0)
    scorer = CaptionScorer(encoder, 8, scoring=ScoringConfig(name="truth"), masking=masking)
    copies, scalars = scorer.mask(encoder, None, batch, *pictures, 0)
    assert torch.equal(copies.noise_chosen, batch["wrong"])
    assert scalars["noise_precision"] == scalars["noise_recall"] == scalars["noise_auc"] == 1
    assert set(scorer.state_dict()) == {"visits"}
    unknown = {name: value for name, value in batch.items() if name != "wrong"}
    with pytest.raises(ParameterError, match="score 'truth' needs captions whose wrong words are known"):
        scorer.mask(encoder, None, unknown, *pictures, 0)


@pytest.mark.parametrize("name", ["gradient", "likelihood"])
def test_a_restored_scorer_masks_as_the_one_that_was_saved(encoder, batch, pictures, name):
    def scorer():
        return CaptionScorer(encoder, 8, scoring=ScoringConfig(name=name), seed=4)

    saved, restored = scorer(), scorer()
    for step in range(2):
        copies, _ = saved.mask(encoder, DECODER, batch, *pictures, step)
        saved.observe(batch, copies, torch.randn(int(copies.prediction_chosen.sum()), encoder.clip.vocab_size))
    restored.load_state_dict(saved.state_dict())
    drawn = [scorer.mask(encoder, DECODER, batch, *pictures, 9)[0] for scorer in (saved, restored)]
    assert torch.equal(drawn[0].noise_ids, drawn[1].noise_ids)
    assert torch.equal(drawn[0].prediction_ids, drawn[1].prediction_ids)


def test_the_likelihood_score_falls_for_a_word_the_picture_does_not_let_one_guess(encoder, tokenizer, pictures):
    """The same word in four captions, in one of them unexpected; another word is as unexpected everywhere, that is rare."""
    ids = tokenizer(["red coat"] * 4)
    batch = {"ids": ids, "caption_index": torch.arange(4)}
    masking = MaskingConfig(random_prediction_rate=1.0)
    scorer = CaptionScorer(encoder, 4, scoring=ScoringConfig("likelihood", normalisation="quantile"), masking=masking)
    copies, scalars = scorer.mask(encoder, DECODER, batch, *pictures, 0)
    assert scalars["masked_by_score"] == 0
    red, coat = ids[0, 1:3]
    logits = torch.zeros(8, encoder.clip.vocab_size)
    logits[::2, red] = torch.tensor([9.0, 9.0, 0.0, 9.0])
    logits[1::2, coat] = -2.0
    scorer.observe(batch, copies, logits)
    scores, _ = scorer._scores(encoder, batch, *pictures, maskable(ids, encoder.tokenizer.mask_id), 1)
    assert scores[2, 1] == scores[:, 1:3].min()
    assert scores[2, 1] < 0.1
    assert (scores[:, 2] == scores[0, 2]).all()
    assert (scores[[0, 1, 3], 1] > scores[0, 2]).all()


class WrittenInAnyOrder(torch.Tensor):
    """Assigns rows one by one, in an order of its own, as a GPU does where an index names a row twice."""

    def __setitem__(self, index, values):
        for place in torch.randperm(len(index)).tolist():
            super().__setitem__(index[place], values[place])


def test_of_a_caption_that_is_in_a_batch_twice_the_later_score_is_kept_in_whatever_order_rows_are_written():
    expected = [1.0] * 7
    table = ScoreTable(7, 2)
    table.table = table.table.as_subclass(WrittenInAnyOrder)
    for step in range(20):
        random = torch.Generator().manual_seed(step)
        index, scores = torch.randint(7, (12,), generator=random), torch.rand(12, 1, generator=random)
        table.update(index, scores.expand(12, 2))
        for row, score in zip(index.tolist(), scores[:, 0].tolist(), strict=True):
            expected[row] = score
    found = table.lookup(torch.arange(7))
    torch.testing.assert_close(found, torch.tensor(expected)[:, None].expand(7, 2), atol=0.5 / 254 + 1e-6, rtol=0)


def test_gains_over_the_usual_are_kept_per_caption_token_as_a_plain_account_of_them_says():
    """A second implementation with dictionaries and floats; a caption is twice in a batch."""
    random = torch.Generator().manual_seed(0)
    table, tokens = LikelihoodTable(5, 30, 6), torch.randint(1, 30, (5, 6), generator=random)
    usual: dict[int, list[float]] = {}
    gains: dict[tuple[int, int], list[float]] = {}
    for _ in range(5):
        index = torch.tensor([0, 2, 2, 4])
        likelihood = -4 * torch.rand(4, 6, generator=random)
        likelihood[torch.rand(4, 6, generator=random) < 0.7] = torch.nan
        table.observe(index, tokens[index], likelihood)
        observed = [(int(index[r]), c, likelihood[r, c].item()) for r, c in (~likelihood.isnan()).nonzero().tolist()]
        for row, place, value in observed:
            usual.setdefault(int(tokens[row, place]), []).append(value)
        for row, place, value in observed:
            before = usual[int(tokens[row, place])]
            gains.setdefault((row, place), []).append(value - sum(before) / len(before))
    mean, count = table.lookup(torch.arange(5))
    assert count.sum() == sum(map(len, gains.values()))
    for (row, place), values in gains.items():
        assert count[row, place] == len(values)
        assert mean[row, place].item() == pytest.approx(sum(values) / len(values), abs=1.5 / 16)  # three roundings


def test_what_was_observed_long_ago_fades():
    table, ids = LikelihoodTable(1, 10, 1, window=4), torch.tensor([[3]])
    table._update_usual = lambda tokens, coded: None  # the usual stays at 0
    for value in [-8.0] * 20 + [0.0] * 20:
        table.observe(torch.tensor([0]), ids, torch.tensor([[value]]))
    mean, count = table.lookup(torch.tensor([0]))
    assert -1 < mean.item() <= 0
    assert 0 < count.item() <= 4


def test_only_tokens_the_decoder_could_not_see_are_observed(encoder, batch, pictures):
    masking = MaskingConfig(random_prediction_rate=1.0, prediction_replacement="bert")
    scorer = CaptionScorer(encoder, 8, scoring=ScoringConfig(name="likelihood"), masking=masking)
    copies, _ = scorer.mask(encoder, DECODER, batch, *pictures, 0)
    scorer.observe(batch, copies, torch.zeros(int(copies.prediction_chosen.sum()), encoder.clip.vocab_size))
    _, count = scorer.likelihoods.lookup(batch["caption_index"])
    hidden = copies.prediction_ids == encoder.tokenizer.mask_id
    assert torch.equal(count > 0, hidden)
    assert 0 < hidden.sum() < copies.prediction_chosen.sum()


def test_a_scorer_that_could_never_learn_is_refused(encoder, batch, pictures):
    scorer = CaptionScorer(encoder, 8, scoring=ScoringConfig(name="likelihood"))
    with pytest.raises(ParameterError, match="mtp_weight must be above 0"):
        scorer.mask(encoder, None, batch, *pictures, 0)
    with pytest.raises(ParameterError, match="allowed are previous, same-step"):
        CaptionScorer(encoder, 8, scoring=None, timing="next")  # type: ignore[arg-type]


def test_diagnostics_count_pairs_and_masked_wrong_tokens():
    ids = torch.tensor([[98, 5, 6, 7, 8, 99]])
    copies = dual_mask(
        ids, torch.zeros(1, 6), mask_id=97, seed=0, step=0, config=MaskingConfig(noise_limit=1.0, slope=1e4)
    )
    scores = torch.tensor([[0, 0.9, 0.2, 0.2, 0.1, 0]])
    wrong = torch.tensor([[False, False, False, True, True, True]])
    allowed = torch.tensor([[False, True, True, True, True, False]])
    found = noise_diagnostics(scores, copies, wrong, allowed)
    assert found["noise_auc"] == (1 + 1 + 0.5 + 1) / 4
    assert found["wrong_share"] == 0.5
    assert found["noise_precision"] == 0.5
    assert found["noise_recall"] == 1
    unknown = torch.tensor([[0, 0.9, -1, 0.2, -1, 0]])
    assert noise_diagnostics(unknown, copies, wrong, allowed)["noise_auc"] == 1
    assert noise_diagnostics(scores, copies, wrong & False, allowed)["noise_auc"] == 0.5
    facts = torch.tensor([[True, False, True, True, False, True]])  # leaves 0.2, right, and 0.2, wrong
    assert noise_diagnostics(scores, copies, wrong, allowed, facts)["noise_auc_facts"] == 0.5
    assert "noise_auc_facts" not in found
    assert word_auc([0.9, 0.2, 0.2, 0.1], [False, False, True, True]) == (1 + 1 + 0.5 + 1) / 4
    assert word_auc([0.9, 0.2, 0.2, 0.1], [False, False, True, True], [False, True, True, True]) == 1.5 / 2


def test_a_words_score_is_the_mean_over_its_tokens_by_any_score(encoder, captions, pixels):
    class Stored:
        def pixels(self, image_ids, height, width):
            return raw[list(image_ids)]

    raw = (pixels * 40 + 128).clamp(0, 255).to(torch.uint8)
    unseen = "a greyish coat"  # its word is spelled letter by letter
    rows = [
        {"caption": text, "image_id": i, "caption_id": 10 + i, "wrong_words": [1]}
        for i, text in enumerate([captions[1], unseen])
    ]
    config = ScoringConfig(name="leave-one-out", normalisation="rank")
    columns, auc = word_scores(encoder, rows, Stored(), config, batch_size=1)
    assert columns["word"] == captions[1].split() + unseen.split()
    assert columns["caption_id"] == [10] * 6 + [11] * 3
    assert [position for position, wrong in zip(columns["position"], columns["wrong"], strict=True) if wrong] == [1, 1]
    with torch.no_grad():
        image, tokens = encoder.encode_image(encoder.normalize_pixels(raw[1:2]))
    scores = token_scores(encoder, encoder.tokenizer([unseen]), image, tokens, config)[0]
    letters = len(encoder.tokenizer.encode("greyish"))
    assert letters > 2
    assert columns["score"][7] == pytest.approx(scores[2 : 2 + letters].mean().item())
    assert auc == word_auc(columns["score"], columns["wrong"])


def test_an_error_leaves_the_modes_of_all_parts_as_they_were(encoder, captions):
    """Of embedding and scoring: some part may have been kept in eval mode on purpose."""

    def unreadable(image_ids, *size):
        raise OSError("a broken picture")

    encoder.train()
    encoder.clip.ln_final.eval()
    row = {"caption": captions[0], "image_id": 0, "caption_id": 0, "wrong_words": []}
    for fail in (
        lambda: embed_images(encoder, [0], unreadable),
        lambda: word_scores(encoder, [row], SimpleNamespace(pixels=unreadable)),
    ):
        with pytest.raises(OSError, match="broken"):
            fail()
        assert encoder.training
        assert not encoder.clip.ln_final.training
    embed_captions(encoder, captions)
    assert [name for name, module in encoder.named_modules() if not module.training] == ["clip.ln_final"]


SENTENCES = ["a red coat", "a man in blue jeans with a bag", "green", "yellow hat and white shoes"]
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [16, 8], "layers": 1, "width": 24, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}
LOOP = LoopConfig(steps=4, learning_rate=1e-2, epsilon=1e-3, clip_norm=0.0)
TARGET = MaskingConfig(target_noise_rate=0.1)
SCORES = {
    "previous": RetrievalConfig(
        scoring=ScoringConfig(normalisation="quantile"), masking=TARGET, decoder_depth=1, temperature=0.2
    ),
    "same step": RetrievalConfig(
        scoring=ScoringConfig(name="path"), score_timing="same-step", decoder_depth=1, temperature=0.2
    ),
    "likelihood": RetrievalConfig(
        scoring=ScoringConfig(name="likelihood", normalisation="quantile"),
        masking=MaskingConfig(random_prediction_rate=0.6, target_noise_rate=0.1),
        decoder_depth=1,
        temperature=0.2,
    ),
}


def train_tiny(rank: int, world_size: int, config: RetrievalConfig) -> dict[str, torch.Tensor]:
    encoder = DualEncoder.create(CONFIG, tokenizer=CaptionTokenizer.from_corpus(SENTENCES))
    encoder.clip.visual.conv1.requires_grad_(False)  # scoring must not mind frozen parameters
    task = RetrievalTask(encoder, config, captions=4)
    pixels = torch.randint(0, 256, (4, 3, 16, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batches = CaptionBatches(
        *(encoder, SENTENCES, range(4), [0, 1, 1, 2], lambda rows: pixels[list(rows)]),
        batch_size=4,
        seed=0,
        rank=rank,
        world_size=world_size,
    )
    context = LocalContext()
    context.rank, context.world_size = rank, world_size
    fit(task, batches, LOOP, context, decay="constant")
    return task.state_dict()


def train_all(rank: int, world_size: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: train_tiny(rank, world_size, config) for name, config in SCORES.items()}


@pytest.mark.faults
def test_two_processes_score_and_mask_as_one_with_the_whole_batch(warm_address):
    """Weights and tables: captions change ranks every epoch, scoring differentiates inside DDP's forward pass."""
    by_rank = in_two_processes(train_all, warm_address)
    for name, config in SCORES.items():
        expected = train_tiny(0, 1, config)
        for state in (states[name] for states in by_rank):
            assert state.keys() == expected.keys()
            for key, tensor in expected.items():
                found = state[key]
                if tensor.is_floating_point():
                    torch.testing.assert_close(found, tensor, atol=2e-5, rtol=0, msg=f"{name}: {key}")
                else:  # codes may round the other way
                    assert (found.long() - tensor.long()).abs().max() <= 1, f"{name}: {key}"
    assert any("scorer.likelihoods.count" in state for state in by_rank[0].values())
