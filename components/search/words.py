"""Which words of a sentence carried its match with a picture.

Two measures, by what the encoder is:

    gradient attention   the paper's score (`components.gadms.scores.gradient`), from 0, for CLIPs with a causal text transformer; a
                         word has the mean of its tokens
    leave one out        cos(sentence, picture) - cos(sentence without the word, picture), for any encoder: one text pass per word.
                         A word below 0 speaks against the picture

Both are divided by the largest magnitude in the sentence: they compare words of one sentence with one picture, and nothing else.

The gradient-attention score before its ReLU has a sign too, but a misleading one. With the default pipeline's model and 120
captions of its gallery, leaving out a word lowers the match in 95 % of the cases where the score is above 0.3 of the largest
magnitude, and raises it in 53 % of those where it is below -0.3, no better than chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from components.gadms.config import ScoringConfig
from components.gadms.model import DualEncoder
from components.gadms.scores.scoring import token_scores
from components.gadms.tokenizer import token_word_alignment
from components.search.encoders import Encoder, PersonEncoder
from components.training.evaluation_mode import evaluation_mode


@dataclass(frozen=True)
class WordWeights:
    """The words of a sentence, split at spaces, each with its weight: 0 for words that the model does not read.

    In [0, 1] by gradient attention, in [-1, 1] by leaving out.
    """

    words: tuple[tuple[str, float], ...]
    by: Literal["gradient attention", "leave one out"]


def word_weights(encoder: Encoder, sentence: str, picture: Image.Image | np.ndarray) -> WordWeights:
    """Weigh the words of `sentence` by what they did for its match with `picture`, an RGB image or its unit vector (D,)."""
    words = sentence.split()
    if isinstance(picture, np.ndarray):
        vector = picture.astype(np.float32)
    else:
        vector = encoder.pictures([picture])[0]
    by: Literal["gradient attention", "leave one out"]
    if isinstance(encoder, PersonEncoder):
        by, raw = "gradient attention", _gradient_attention(encoder.model, sentence, words, vector)
    else:
        by, raw = "leave one out", _leave_one_out(encoder, words, vector)
    largest = float(np.abs(raw).max(initial=0))
    weights = raw / largest if largest > 0 else raw
    return WordWeights(tuple(zip(words, (float(weight) for weight in weights), strict=True)), by)


def _gradient_attention(encoder: DualEncoder, sentence: str, words: Sequence[str], vector: np.ndarray) -> np.ndarray:
    """The score of every word: the mean over its tokens."""
    with evaluation_mode(encoder):
        ids = encoder.tokenizer([sentence]).to(encoder.device)
        # The score is of the cosine, so the picture's unit vector serves as well as its pooled features. It reads no image tokens.
        image = torch.from_numpy(vector)[None].to(encoder.device)
        scores = token_scores(encoder, ids, image, image[:, None], ScoringConfig("gradient"))
    of_tokens = scores[0].double().cpu().numpy()
    owner = token_word_alignment(sentence, encoder.tokenizer).numpy()
    return np.array([of_tokens[owner == word].mean() if (owner == word).any() else 0.0 for word in range(len(words))])


def _leave_one_out(encoder: Encoder, words: Sequence[str], vector: np.ndarray) -> np.ndarray:
    """What the cosine loses without each word."""
    shorter = [" ".join([*words[:place], *words[place + 1 :]]) for place in range(len(words))]
    cosines = encoder.sentences([" ".join(words), *shorter]).astype(np.float64) @ vector.astype(np.float64)
    return np.asarray(cosines[0] - cosines[1:])
