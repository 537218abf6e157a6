"""Detection of wrong words by token scores: scores of words, and the AUC."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from components.evaluation.auc import area_under_curve
from components.gadms.config import ScoringConfig
from components.gadms.masking import DualMask
from components.gadms.model import DualEncoder
from components.gadms.scores.scoring import token_scores
from components.gadms.tokenizer import token_word_alignment
from components.training.evaluation_mode import evaluation_mode


class PixelSource(Protocol):
    """A source of pixels by image_id, such as `PersonDataset`."""

    def pixels(self, image_ids: Sequence[int], height: int, width: int) -> Tensor:
        """Return uint8 (N, 3, height, width)."""


@torch.no_grad()
def word_scores(
    encoder: DualEncoder,
    rows: Sequence[Mapping[str, Any]],
    pictures: PixelSource,
    config: ScoringConfig | None = None,
    *,
    batch_size: int = 64,
) -> tuple[dict[str, list[Any]], float]:
    """Score every word of captions with known wrong words; the default `config` is the paper's score.

    rows hold caption, image_id, caption_id and wrong_words. A word's score is the mean over its tokens. Returns the columns
    (caption_id, position, word, score, wrong), one entry per word, and `word_auc`. Scores that depend on the batch ("quantile",
    "batch", a temperature) see `batch_size` captions at a time, in the order of rows.
    """
    columns: dict[str, list[Any]] = {key: [] for key in ("caption_id", "position", "word", "score", "wrong")}
    with evaluation_mode(encoder):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            pixels = pictures.pixels([row["image_id"] for row in part], *encoder.image_size)
            image, image_tokens = encoder.encode_image(encoder.normalize_pixels(pixels))
            ids = encoder.tokenizer([row["caption"] for row in part])
            scores = token_scores(encoder, ids.to(encoder.device), image, image_tokens, config).cpu()
            for row, tokens, values in zip(part, ids, scores, strict=True):
                words = row["caption"].split()
                owner = token_word_alignment(row["caption"], encoder.tokenizer, tokens)
                wrong = set(row["wrong_words"])
                for position, word in enumerate(words):
                    mine = values[owner[: len(values)] == position]
                    if len(mine):
                        entry = (row["caption_id"], position, word, float(mine.mean()), position in wrong)
                        for key, value in zip(columns, entry, strict=True):
                            columns[key].append(value)
    return columns, word_auc(columns["score"], columns["wrong"])


def word_auc(scores: Sequence[float], wrong: Sequence[bool], among: Sequence[bool] | None = None) -> float:
    """Return the probability that a right word scores above a wrong one of any caption, ties one half.

    0.5 is chance, and the value for captions without a wrong or without a right word. `among`: which words are compared, by default
    all. Most of a caption states no fact ("a", "wearing"), and is right whatever the picture shows.
    """
    values, flags = torch.tensor(scores, dtype=torch.float64), torch.tensor(wrong, dtype=torch.bool)
    if among is not None:
        chosen = torch.tensor(among, dtype=torch.bool)
        values, flags = values[chosen], flags[chosen]
    return float(area_under_curve(values[~flags], values[flags]))


def noise_diagnostics(
    scores: Tensor | None, copies: DualMask, wrong: Tensor, allowed: Tensor, facts: Tensor | None = None
) -> dict[str, Tensor]:
    """Measure how well scores and masks find the wrong tokens: scalars to log. scores, wrong, allowed, facts (B, T).

    noise_auc: AUC over tokens with a known score (not negative), noise_auc_facts: over those of them in `facts`; left out without
    scores. noise_precision: fraction of wrong tokens among those masked in the noise copy, to compare with wrong_share, the
    fraction among all; noise_recall: fraction of the wrong tokens that is masked there.
    """
    wrong = wrong & allowed
    hit = (copies.noise_chosen & wrong).sum()
    found = {
        "noise_precision": hit / copies.noise_chosen.sum().clamp_min(1),
        "noise_recall": hit / wrong.sum().clamp_min(1),
        "wrong_share": wrong.sum() / allowed.sum().clamp_min(1),
    }
    if scores is not None:
        known = allowed & (scores >= 0)
        for name, among in {"noise_auc": known, "noise_auc_facts": None if facts is None else known & facts}.items():
            if among is not None:
                found[name] = area_under_curve(scores[among & ~wrong], scores[among & wrong]).float()
    return found
