"""Does a score find the wrong words of a caption? Word by word, for looking at and for a number."""

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


class PixelSource(Protocol):
    """Where pixels come from: uint8 (N, 3, H, W) by image_id."""

    def pixels(self, image_ids: Sequence[int], height: int, width: int) -> Tensor: ...


@torch.no_grad()
def word_scores(
    encoder: DualEncoder,
    rows: Sequence[Mapping[str, Any]],
    pictures: PixelSource,
    config: ScoringConfig | None = None,
    *,
    batch_size: int = 64,
) -> tuple[dict[str, list[Any]], float]:
    """Score every word of captions with known wrong words; `config` is the paper's score where it is None.

    rows hold caption, image_id, caption_id and wrong_words. A word's score is the mean over its tokens. Returns columns
    (caption_id, position, word, score, wrong), one entry a word, and the AUC of `word_auc`. Scores that compare with the
    rest of their batch ("quantile", "batch", a temperature) do so `batch_size` captions at a time, in the order of rows.
    """
    encoder.eval()
    columns: dict[str, list[Any]] = {key: [] for key in ("caption_id", "position", "word", "score", "wrong")}
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        pixels = pictures.pixels([row["image_id"] for row in part], *encoder.image_size)
        image, image_tokens = encoder.encode_image(encoder.normalize_pixels(pixels))
        ids = encoder.tokenizer([row["caption"] for row in part]).to(encoder.device)
        scores = token_scores(encoder, ids, image, image_tokens, config).cpu()
        for row, values in zip(part, scores, strict=True):
            words = row["caption"].split()
            owner = token_word_alignment(row["caption"], encoder.tokenizer)
            wrong = set(row["wrong_words"])
            for position, word in enumerate(words):
                mine = values[owner[: len(values)] == position]
                if len(mine):
                    entry = (row["caption_id"], position, word, float(mine.mean()), position in wrong)
                    for key, value in zip(columns, entry, strict=True):
                        columns[key].append(value)
    return columns, word_auc(columns["score"], columns["wrong"])


def word_auc(scores: Sequence[float], wrong: Sequence[bool]) -> float:
    """The probability that a right word scores above a wrong one of any caption, ties one half.

    0.5 says nothing, and stands for captions without a wrong word, or without a right one.
    """
    values, flags = torch.tensor(scores, dtype=torch.float64), torch.tensor(wrong, dtype=torch.bool)
    return float(area_under_curve(values[~flags], values[flags]))


def noise_diagnostics(scores: Tensor | None, copies: DualMask, wrong: Tensor, allowed: Tensor) -> dict[str, Tensor]:
    """How well scores and masks find the wrong tokens, scalars to log: all of scores, wrong, allowed (B, T).

    noise_auc: probability that a right token scores above a wrong one (ties one half; 0.5 if a class is empty), over
    tokens with a known score (not negative); left out without scores.
    noise_precision: share of wrong ones among the tokens masked in the noise copy, to be held against wrong_share;
    noise_recall: share of the wrong ones that are masked there.
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
        found["noise_auc"] = area_under_curve(scores[known & ~wrong], scores[known & wrong]).float()
    return found
