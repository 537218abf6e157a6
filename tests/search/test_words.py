from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from attention_reference import signed_reference
from PIL import Image

from components.gadms.model import DualEncoder
from components.gadms.tokenizer import CaptionTokenizer, token_word_alignment
from components.search.encoders import PersonEncoder
from components.search.words import word_weights

SENTENCE = "A man in a red jacket and blue jeans, carrying a zyxxy backpack."
PICTURE = Image.linear_gradient("L").resize((8, 16)).convert("RGB")
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [16, 8], "layers": 1, "width": 24, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3},
}


class AnyEncoder:
    """Reads words in their order, not linearly, one sentence like another whatever it is encoded with."""

    @staticmethod
    @cache
    def _word(word):
        return np.random.default_rng(list(word.encode())).normal(size=16)

    def sentences(self, texts):
        vectors = [
            np.tanh(sum((self._word(word) * (1 + 0.1 * n) for n, word in enumerate(text.split())), np.ones(16)))
            for text in texts
        ]
        return np.stack([vector / np.linalg.norm(vector) for vector in vectors]).astype(np.float32)

    def pictures(self, images):
        return self.sentences(["a blue bag"] * len(images))


@pytest.fixture(scope="module")
def encoder():
    """The pipeline's own, tiny, with weights as lively as trained ones."""
    tokenizer = CaptionTokenizer.from_corpus(["a man in red jacket and blue jeans, carrying backpack."])
    model = DualEncoder.create(CONFIG, tokenizer=tokenizer, seed=3)
    with torch.no_grad():
        model.clip.token_embedding.weight *= 50
        for block in model.clip.transformer.resblocks:
            block.attn.in_proj_weight *= 3
    return PersonEncoder(model, "tiny", "digest")


@pytest.mark.parametrize("sentence", [SENTENCE, "jeans", "red " * 200])
def test_the_pipelines_own_encoder_has_the_gradient_attention_score_of_plain_autograd(encoder, sentence):
    vector = encoder.pictures([PICTURE])[0]
    weights = word_weights(encoder, sentence, vector)
    assert weights.by == "gradient attention"
    assert [word for word, _ in weights.words] == sentence.split()
    dual = deepcopy(encoder.model).double()
    ids, owner = dual.tokenizer([sentence])[0], token_word_alignment(sentence, dual.tokenizer).tolist()
    tokens = signed_reference(dual, ids, torch.from_numpy(vector).double(), layers=2, scales=(1, 2)).relu().tolist()
    of_words = [[] for _ in sentence.split()]
    for value, word in zip(tokens, owner[1:], strict=False):
        of_words[word].append(value)
    expected = np.array([sum(values) / len(values) if values else 0 for values in of_words])
    expected /= abs(expected).max()
    np.testing.assert_allclose([weight for _, weight in weights.words], expected, atol=1e-3)


def test_the_strongest_word_has_weight_one_and_only_leaving_out_says_what_speaks_against_a_picture(encoder):
    for own in (True, False):
        weights = [w for _, w in word_weights(encoder if own else AnyEncoder(), SENTENCE, PICTURE).words]
        assert max(map(abs, weights)) == 1
        assert (min(weights) >= 0) == own


def test_weights_leave_the_encoder_in_its_mode_and_without_gradients(encoder):
    encoder.model.train()
    with torch.no_grad():
        word_weights(encoder, SENTENCE, PICTURE)
    assert encoder.model.clip.transformer.training
    encoder.model.eval()
    assert all(parameter.grad is None for parameter in encoder.model.parameters())


@pytest.mark.parametrize("sentence", ["a man with a blue bag", "bag", "word " * 80])
def test_any_other_encoder_leaves_out_one_word_at_a_time(sentence):
    encoder = AnyEncoder()
    weights = word_weights(encoder, sentence, PICTURE)
    assert weights.by == "leave one out"
    words, vector = sentence.split(), encoder.pictures([PICTURE])[0].astype(float)
    whole = encoder.sentences([sentence])[0] @ vector
    losses = []
    for place in range(len(words)):
        rest = [word for number, word in enumerate(words) if number != place]
        losses.append(whole - encoder.sentences([" ".join(rest)])[0] @ vector)
    expected = np.array(losses) / max(map(abs, losses))
    np.testing.assert_allclose([weight for _, weight in weights.words], expected, atol=1e-3)


@pytest.mark.parametrize("own", [True, False])
def test_a_picture_and_its_vector_weigh_the_same_also_in_half_precision_and_nothing_has_no_words(own, encoder):
    encoder = encoder if own else AnyEncoder()
    vector = encoder.pictures([PICTURE])[0]
    weights = word_weights(encoder, SENTENCE, PICTURE)
    assert weights == word_weights(encoder, SENTENCE, vector)
    half = word_weights(encoder, SENTENCE, vector.astype(np.float16))
    np.testing.assert_allclose([w for _, w in half.words], [w for _, w in weights.words], atol=0.02)
    assert word_weights(encoder, "  ", PICTURE).words == ()
