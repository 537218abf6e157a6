"""What each method shows its losses, and with which weights."""

import pytest
import torch

from components.errors import ParameterError
from components.gadms.config import MaskingConfig, ScoringConfig
from components.gadms.masking import maskable
from components.gadms.methods import METHODS, RetrievalConfig
from components.gadms.tasks import RetrievalTask

ALL = MaskingConfig(random_noise_rate=1.0, random_prediction_rate=1.0, noise_limit=1.0, slope=1e4, threshold=2.0)


@pytest.fixture
def batch(ids, pixels):
    return {"pixels": pixels, "ids": ids, "identities": torch.arange(4), "caption_index": torch.arange(4)}


def read(encoder, batch, config, monkeypatch):
    """The rows that the text tower reads for the losses of one step (its last pass), the step's scalars, and the task."""
    task = RetrievalTask(encoder, config, captions=4, identities=4)
    rows, encode = [], encoder.encode_text

    def record(ids, **options):
        rows.append(ids)
        return encode(ids, **options)

    monkeypatch.setattr(encoder, "encode_text", record)
    with torch.no_grad():
        scalars = task(batch, 0)
    return rows[-1], scalars, task


@pytest.mark.parametrize("method", METHODS)
def test_the_matching_loss_sees_the_caption_or_its_noise_copy_as_the_table_says(encoder, batch, method, monkeypatch):
    rows, scalars, _ = read(encoder, batch, RetrievalConfig(name=method, decoder_depth=1, masking=ALL), monkeypatch)
    untouched = torch.equal(rows[:4], batch["ids"])
    assert untouched == (method in ("unmasked", "sdm", "irra", "contrastive", "tal"))
    recipe = METHODS[method]
    assert recipe.matching in scalars
    assert ("mtp" in scalars, "id" in scalars) == (recipe.mtp_weight > 0, recipe.id_weight > 0)
    expected = scalars[recipe.matching]
    for name, weight in (("mtp", recipe.mtp_weight), ("id", recipe.id_weight)):
        expected = expected + weight * scalars.get(name, torch.tensor(0.0))
    torch.testing.assert_close(scalars["loss"], expected)


def test_published_weights_are_the_papers_and_those_that_are_set_win():
    published = {name: (recipe.mtp_weight, recipe.id_weight) for name, recipe in METHODS.items() if recipe.mtp_weight}
    assert published == {"gadms": (0.4, 0), "random": (0.4, 0), "unmasked": (0.4, 0), "irra": (1, 1)}
    recipe = RetrievalConfig(name="irra", mtp_weight=0.25).recipe
    assert (recipe.mtp_weight, recipe.id_weight) == (0.25, 1)
    assert RetrievalConfig(name="tal", mtp_weight=0.25).recipe.mtp_weight == 0  # nothing is masked


def unit_float64(encoder, batch):
    """Unit vectors of pictures and captions in float64, (B, D) each."""
    with torch.no_grad():
        pair = encoder.encode_image(batch["pixels"])[0].double(), encoder.encode_text(batch["ids"])[0].double()
    return [vectors / vectors.norm(dim=1, keepdim=True) for vectors in pair]


def info_nce(image, text, temperature):
    """Plain InfoNCE of distinct identities."""
    logits = image @ text.T / temperature
    rows, columns = logits.log_softmax(1).diagonal(), logits.log_softmax(0).diagonal()
    return -(rows.mean() + columns.mean()) / 2


@pytest.mark.parametrize("method", METHODS)
def test_every_method_warms_up_alike_and_matches_at_the_temperature_of_the_others(encoder, batch, method):
    """A comparison of methods is of what their lines say; TAL's temperature is part of that loss and no softmax's."""
    image, text = unit_float64(encoder, batch)
    with torch.no_grad():
        for own, wanted in ((None, 0.02), (0.3, 0.3)):
            config = RetrievalConfig(name=method, decoder_depth=1, warmup_steps=1, temperature=own)
            task = RetrievalTask(encoder, config, captions=4, identities=4)
            torch.testing.assert_close(
                task(batch, 0)["contrastive"].double(), info_nce(image, text, 0.07), atol=1e-4, rtol=0
            )
            assert task.config.matching_temperature == (0.015 if method == "tal" and own is None else wanted)
            if method == "contrastive":
                found, expected = task(batch, 1)["contrastive"].double(), info_nce(image, text, wanted)
                torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
            if method in ("unmasked", "sdm", "irra"):  # of the unmasked caption
                found = task(batch, 1)["sdm"].double()
                expected = sum(
                    (logits.softmax(1) * (logits.log_softmax(1) - (torch.eye(4) + 1e-8).double().log())).sum(1).mean()
                    for logits in (image @ text.T / wanted, text @ image.T / wanted)
                )
                torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["gadms", "random", "unmasked", "sdm", "contrastive"])
@pytest.mark.parametrize(("matching", "temperature"), [("sdm", 0.02), ("contrastive", 0.02), ("tal", 0.015)])
def test_any_method_takes_any_matching_loss_and_keeps_its_masks(
    encoder, batch, monkeypatch, method, matching, temperature
):
    config = RetrievalConfig(name=method, matching=matching, decoder_depth=1, masking=ALL, sdm_weight=2.0)
    rows, scalars, _ = read(encoder, batch, config, monkeypatch)
    monkeypatch.undo()
    assert config.matching_temperature == temperature
    assert {"sdm", "contrastive", "tal"} & set(scalars) == {matching}
    task = RetrievalTask(encoder, config, captions=4, identities=4)
    with torch.no_grad():
        image, text = encoder.encode_image(batch["pixels"])[0], encoder.encode_text(rows[:4])[0]
        expected = task._matching_loss(matching, image, text, batch["identities"], temperature)
    torch.testing.assert_close(scalars[matching], expected)
    assert torch.equal(rows[:4], batch["ids"]) == (method not in ("gadms", "random"))
    masks = method in ("gadms", "random", "unmasked")
    assert ("mtp" in scalars) == masks
    if masks:
        torch.testing.assert_close(scalars["loss"], 2 * scalars[matching] + 0.4 * scalars["mtp"])


def test_aliasing_shows_the_masked_caption_to_every_loss_and_saves_a_pass(encoder, batch, monkeypatch):
    config = RetrievalConfig(name="irra", decoder_depth=1, masking=ALL, caption_aliasing=True)
    rows, scalars, _ = read(encoder, batch, config, monkeypatch)
    assert len(rows) == 4
    inside = maskable(batch["ids"], encoder.tokenizer.mask_id)
    assert "noise_rate" not in scalars  # nobody reads a noise copy
    assert (rows == encoder.tokenizer.mask_id)[inside].float().mean() > 0.5  # the rest of BERT's 80/10/10 is not a mask
    assert torch.equal(rows[~inside], batch["ids"][~inside])


def test_nam_masks_by_its_own_rule_and_score_whatever_is_configured(encoder, batch, monkeypatch):
    config = RetrievalConfig(name="nam", scoring=ScoringConfig(name="random"))
    _, _, task = read(encoder, batch, config, monkeypatch)
    assert (task.scorer.scoring.name, task.scorer.masking.rule) == ("max-patch", "nam")
    assert task.decoder is None


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(
        ParameterError, match="name = 'simclr': input should be 'gadms', 'random', 'unmasked', 'nam', 'sdm', 'irra'"
    ):
        RetrievalConfig(name="simclr")
