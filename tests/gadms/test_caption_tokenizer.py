from itertools import chain

import pytest
import torch

from components.errors import DataError
from components.gadms.tokenizer import CaptionTokenizer, token_word_alignment, word_token_mask

CAPTION = "A young woman's jacket, with don't-care stripes!"


def test_the_published_vocabulary_gives_the_ids_of_open_clip():
    from open_clip.tokenizer import SimpleTokenizer

    texts = [CAPTION, "ünïcode café 42 $", "", "word " * 200]
    assert torch.equal(CaptionTokenizer()(texts), SimpleTokenizer()(texts))


def test_special_ids_follow_one_rule_in_both_vocabularies():
    full, compact = CaptionTokenizer(), CaptionTokenizer.from_corpus([CAPTION])
    assert (full.mask_id, full.start_id, full.end_id) == (49405, 49406, 49407)
    assert (compact.mask_id, compact.start_id, compact.end_id) == tuple(compact.vocab_size - n for n in (3, 2, 1))
    assert compact(CAPTION).argmax() == (compact(CAPTION) != 0).sum() - 1


def test_a_word_outside_the_compact_vocabulary_is_spelled_and_can_be_read_back():
    compact = CaptionTokenizer.from_corpus(["a red coat"])
    assert len(compact.encode("red")) == 1
    assert len(compact.encode("turquoise")) == len("turquoise")
    assert compact.decode(compact.encode("a turquoise coat, jekyll?")) == "a turquoise coat , jekyll ?"


def test_no_text_encodes_to_the_mask_or_to_padding():
    for tokenizer in (CaptionTokenizer(), CaptionTokenizer.from_corpus(["jekyll !,"])):
        ids = tokenizer.encode("jekyll !a !, !?! jekyll")
        assert 0 not in ids
        assert max(ids) < tokenizer.mask_id


@pytest.mark.parametrize(
    "tokenizer", [CaptionTokenizer(), CaptionTokenizer.from_corpus(["a <end_of_text> man, text of the end"])]
)
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a man<end_of_text>, tall", "a man < end _ of _ text >, tall"),
        ("<START_OF_TEXT> A man", "< start _ of _ text > a man"),
        ("a &lt;end_of_text&gt; man", "a < end _ of _ text > man"),
        ("!<end_of_text><end_of_text>", "!< end _ of _ text >< end _ of _ text >"),
    ],
)
def test_the_name_of_a_special_token_is_text(tokenizer, text, pieces):
    ids = tokenizer.encode(text)
    assert ids == tokenizer.encode(pieces)
    assert max(ids) < tokenizer.mask_id
    row = tokenizer(text)[0]
    assert row.argmax() == len(ids) + 1  # the end that the model reads
    assert (row == tokenizer.start_id).sum() == 1


def test_the_end_of_a_sentence_that_is_too_long_is_named():
    full, compact = CaptionTokenizer(), CaptionTokenizer.from_corpus(["a man"])
    fits, cut = "man " * 75, "man " * 75 + "caf\u00e9 \u4e00 hat"
    for tokenizer in (full, compact):
        assert (tokenizer.is_cut(fits), tokenizer.unread(fits)) == (False, "")
        assert (tokenizer.is_cut(cut), tokenizer.unread(cut)) == (True, "caf\u00e9 \u4e00 hat")
    assert compact.is_cut("turquoise " * 9)  # each is spelled in nine symbols
    assert not full.is_cut("turquoise " * 9)
    assert compact.unread("turquoise " * 9) == "quoise"
    assert not full.is_cut("")


def test_a_saved_vocabulary_gives_the_same_ids(tmp_path):
    compact = CaptionTokenizer.from_corpus([CAPTION])
    compact.save(tmp_path)
    assert torch.equal(CaptionTokenizer.load(tmp_path)(CAPTION), compact(CAPTION))
    (tmp_path / "vocabulary.json").write_text('{"kept": [3]}')
    with pytest.raises(DataError, match="not a vocabulary"):
        CaptionTokenizer.load(tmp_path)


def test_each_token_is_traced_to_its_word():
    tokenizer = CaptionTokenizer()
    ids, alignment = tokenizer(CAPTION)[0], token_word_alignment(CAPTION, tokenizer)
    for index, word in enumerate(CAPTION.split()):
        spelled = tokenizer.decode(ids[alignment == index].tolist())
        assert spelled.replace(" ", "") == word.lower().replace(" ", "")
    assert (alignment >= 0).sum() == len(tokenizer.encode(CAPTION))


def test_wrong_words_become_wrong_tokens_only():
    tokenizer = CaptionTokenizer()
    caption = "a purple-ish hat here"
    wrong = word_token_mask(token_word_alignment(caption, tokenizer), [1])
    assert tokenizer.decode(tokenizer(caption)[0][wrong].tolist()) == "purple - ish"
    assert not word_token_mask(token_word_alignment("a hat", tokenizer), []).any()


def test_the_words_of_a_set_of_captions_are_encoded_once(monkeypatch):
    tokenizer, encoded = CaptionTokenizer(), []
    encode = CaptionTokenizer.encode
    monkeypatch.setattr(CaptionTokenizer, "encode", lambda self, text: encoded.append(text) or encode(self, text))
    captions = [f"a {colour} hat and a {colour} bag" for colour in ("red", "blue") for _ in range(20)]
    for caption in captions:
        assert list(chain.from_iterable(tokenizer.encode_words(caption))) == encode(tokenizer, caption)
    assert sorted(encoded) == ["a", "and", "bag", "blue", "hat", "red"]


def test_words_beyond_the_context_are_not_aligned():
    tokenizer = CaptionTokenizer()
    alignment = token_word_alignment("word " * 200, tokenizer)
    assert alignment.max() == 74
    assert alignment[76] == -1
