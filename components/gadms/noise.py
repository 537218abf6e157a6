"""Do gradient-attention scores find the wrong words of a caption? Word by word, for looking at and for a number."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from components.gadms.model import DualEncoder
from components.gadms.scores import gradient_attention_scores
from components.gadms.tokenizer import token_word_alignment


class Pictures(Protocol):
    """Where pixels come from: uint8 (N, 3, H, W) by image_id."""

    def pixels(self, image_ids: Sequence[int], height: int, width: int) -> Tensor: ...


@torch.no_grad()
def word_scores(
    encoder: DualEncoder, rows: Sequence[Mapping[str, Any]], pictures: Pictures, batch_size: int = 64
) -> tuple[dict[str, list[Any]], float]:
    """Score every word of captions with known wrong words.

    rows hold caption, image_id, caption_id and wrong_words. A word's score is the mean over its tokens. Returns columns
    (caption_id, position, word, score, wrong), one entry a word, and the probability that a right word scores above a
    wrong one of any caption (0.5 says nothing, and stands for captions without a wrong word).
    """
    encoder.eval()
    columns: dict[str, list[Any]] = {key: [] for key in ("caption_id", "position", "word", "score", "wrong")}
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        pixels = pictures.pixels([row["image_id"] for row in part], *encoder.image_size)
        image, _ = encoder.encode_image(encoder.normalize_pixels(pixels))
        ids = encoder.tokenizer([row["caption"] for row in part])
        scores = gradient_attention_scores(encoder, ids.to(encoder.device), image).cpu()
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
    return columns, _auc(columns["score"], columns["wrong"])


def _auc(scores: Sequence[float], wrong: Sequence[bool]) -> float:
    values, flags = torch.tensor(scores, dtype=torch.float64), torch.tensor(wrong, dtype=torch.bool)
    high, low = values[~flags], values[flags].sort().values
    if not len(high) or not len(low):
        return 0.5
    below, not_above = torch.searchsorted(low, high), torch.searchsorted(low, high, side="right")
    return float((below + not_above).double().mean() / (2 * len(low)))
