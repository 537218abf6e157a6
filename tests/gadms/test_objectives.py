import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from components.gadms.decoder import CrossModalDecoder
from components.gadms.objectives import (
    contrastive,
    identity_classification,
    masked_token_prediction,
    similarity_distribution_matching,
    triplet_alignment,
)

DISTINCT = torch.arange(4)


def sdm_reference(image, text, identities, tau):
    """The definition with loops, in float64."""
    image, text = image.double().numpy(), text.double().numpy()

    def cosine(a, b):
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    def direction(first, second):
        total = 0.0
        for i in range(len(first)):
            exponents = [math.exp(cosine(first[i], other) / tau) for other in second]
            matches = [float(identities[i] == identities[j]) for j in range(len(second))]
            for exponent, match in zip(exponents, matches, strict=True):
                p, q = exponent / sum(exponents), match / sum(matches)
                total += p * (math.log(p) - math.log(q + 1e-8))
        return total / len(first)

    return direction(image, text) + direction(text, image)


@pytest.mark.parametrize(
    ("text", "identities", "expected"), [(torch.eye(4), DISTINCT, 0.0), (torch.eye(4)[[1, 0, 2, 3]], DISTINCT, 18.4207)]
)
def test_matching_loss_of_one_hot_features(text, identities, expected):
    loss = similarity_distribution_matching(torch.eye(4), text, identities)
    assert loss.item() == pytest.approx(expected, abs=2e-3 if expected else 1e-6)


def test_matching_loss_is_zero_when_features_agree_within_an_identity():
    features = torch.eye(2)[[0, 0, 1, 1]]
    loss = similarity_distribution_matching(features, features, torch.tensor([5, 5, 9, 9]))
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("batch", "expected"), [(4, 24.8584), (64, 27.9479)])
def test_matching_loss_of_equal_features_is_the_plateau(batch, expected):
    same = torch.ones(batch, 8)
    loss = similarity_distribution_matching(same, same, torch.arange(batch))
    assert loss.item() == pytest.approx(expected, abs=1e-3)


def test_matching_loss_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 6, 5, generator=generator)
    identities = torch.tensor([1, 1, 2, 3, 3, 3])
    loss = similarity_distribution_matching(image, text, identities, tau=0.3)
    assert loss.item() == pytest.approx(sdm_reference(image, text, identities, 0.3), rel=1e-5)


def alignment_reference(image, text, identities, tau, margin):
    """RDE's definition with loops, in float64: a hinge for every row and direction, summed."""
    image, text = (F.normalize(side.double(), dim=-1).numpy() for side in (image, text))
    total = 0.0
    for first, second in ((image, text), (text, image)):
        for i, row in enumerate(first):
            scores = [float(row @ other) for other in second]
            own = [s for s, identity in zip(scores, identities, strict=True) if identity == identities[i]]
            others = [s for s, identity in zip(scores, identities, strict=True) if identity != identities[i]]
            weights = [math.exp(s / tau) for s in own]
            positive = sum(w * s for w, s in zip(weights, own, strict=True)) / sum(weights)
            total += max(0.0, margin - positive + tau * math.log(sum(math.exp(s / tau) for s in others)))
    return total


@pytest.mark.parametrize(("tau", "margin"), [(0.015, 0.1), (0.3, 0.5)])
def test_alignment_loss_equals_its_definition(tau, margin):
    image, text = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3))
    identities = [1, 1, 2, 3, 3, 3]
    loss = triplet_alignment(image, text, torch.tensor(identities), tau, margin)
    assert loss.item() == pytest.approx(alignment_reference(image, text, identities, tau, margin), rel=1e-5)


def test_alignment_weights_of_the_positives_carry_no_gradient():
    image = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    text = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    identities = torch.tensor([0, 0, 1])
    triplet_alignment(image, text, identities, 0.2, 5.0).backward()
    similarity = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    expected = torch.zeros((), dtype=torch.float64)
    for scores, same in ((similarity, identities), (similarity.T, identities)):
        for i in range(3):
            own, others = scores[i][same == same[i]], scores[i][same != same[i]]
            weights = (own.detach() / 0.2).softmax(0)
            expected = expected + 5.0 - (weights * own).sum() + 0.2 * (others / 0.2).logsumexp(0)
    (gradient,) = torch.autograd.grad(expected, image)
    torch.testing.assert_close(image.grad, gradient, atol=1e-5, rtol=1e-5)


def test_alignment_loss_is_zero_without_negatives_and_its_gradient_finite():
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = triplet_alignment(features, features, torch.zeros(3))
    loss.backward()
    assert loss == 0
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("loss", [similarity_distribution_matching, triplet_alignment, contrastive])
def test_matching_losses_and_their_gradients_are_the_same_under_autocast(loss):
    image, text = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for enabled in (False, True):
        features = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss(features, text, torch.arange(16) // 2)
        value.backward()
        found.append((value.detach(), features.grad))
    assert found[0][0] > 0
    for plain, under_autocast in zip(*found, strict=True):
        assert under_autocast.dtype == torch.float32
        assert torch.equal(plain, under_autocast)


def test_contrastive_loss_is_open_clips_when_every_row_is_its_own_identity():
    from open_clip.loss import ClipLoss

    image, text = F.normalize(torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = ClipLoss()(image, text, torch.tensor(1 / 0.07))
    torch.testing.assert_close(contrastive(3 * image, text), expected)
    torch.testing.assert_close(contrastive(image, text, torch.arange(6)), expected)


def test_contrastive_loss_does_not_push_captions_of_one_identity_apart():
    features = torch.eye(2)[[0, 0, 1, 1]]
    identities = torch.tensor([5, 5, 9, 9])
    assert contrastive(features, features, identities, 0.01).item() == pytest.approx(math.log(2), abs=1e-5)


def test_masked_token_loss_is_the_mean_over_masked_tokens_and_zero_without_any():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 2, 3, 4, 5])
    torch.testing.assert_close(masked_token_prediction(logits, targets), F.cross_entropy(logits, targets))
    assert masked_token_prediction(logits[:0], targets[:0]) == 0


def test_identity_loss_uses_one_classifier_for_both_modalities():
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 3, 4, generator=generator)
    classifier = nn.Linear(4, 7)
    identities = torch.tensor([0, 6, 2])
    both = F.cross_entropy(classifier(torch.cat([image, text])), identities.repeat(2))
    torch.testing.assert_close(identity_classification(image, text, identities, classifier), both)


def test_the_decoder_has_the_published_size_and_answers_at_masked_positions_only():
    with torch.device("meta"):
        decoder = CrossModalDecoder(512, 49408, depth=4)
    assert round(sum(p.numel() for p in decoder.parameters()) / 1e6, 1) == 39.3
    decoder = CrossModalDecoder(32, 50, depth=1)
    text, image = torch.randn(3, 7, 32), torch.randn(3, 5, 32)
    padding = torch.arange(7) > torch.tensor([[6], [3], [4]])
    masked = torch.zeros(3, 7, dtype=torch.bool)
    masked[0, 2] = masked[1, 1] = True
    logits = decoder(text, image, padding, masked)
    everywhere = decoder(text, image, padding, torch.ones_like(masked)).view(3, 7, 50)
    torch.testing.assert_close(logits, everywhere[masked])
    text[padding] = 9.0  # what stands behind the end is not seen
    torch.testing.assert_close(decoder(text, image, padding, masked), logits)
    assert not torch.allclose(decoder(text, image.flip(0), padding, masked), logits)
