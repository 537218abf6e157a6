import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_captioning_models import llava, qwen

from components.errors import DataError, ParameterError
from components.persons.curation.captioners import GrammarCaptioner, VisionLanguageCaptioner
from components.persons.curation.templates import TEMPLATES, choose_templates, instruction, is_unfilled, read_templates
from components.persons.drawn.attributes import ATTRIBUTES
from components.persons.drawn.captions import compose
from components.training.randomness import stream_seed


def pictures(count):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 20 + 4 * i, 3), dtype=np.uint8)) for i in range(count)]


def test_every_template_has_places_and_a_caption_with_one_left_is_noticed():
    assert all(is_unfilled(template) for template in TEMPLATES)
    assert is_unfilled("A man in <coloured top>.")
    assert not is_unfilled("A man in red, 1 < 2 and 3 > 2 [")


def test_templates_depend_on_seed_and_picture_and_differ_while_there_are_enough():
    chosen = choose_templates(TEMPLATES, 0, 5, len(TEMPLATES))
    assert sorted(chosen) == sorted(TEMPLATES)
    assert choose_templates(TEMPLATES, 0, 5, 2) == chosen[:2]
    assert len({tuple(choose_templates(TEMPLATES, 0, number, 2)) for number in range(30)}) > 10
    assert choose_templates(("a [b]",), 0, 0, 2) == ["a [b]", "a [b]"]


def test_the_instruction_holds_the_template_and_the_papers_rules():
    text = instruction("A [man].", 40)
    assert text.endswith("Structured template: A [man].")
    for rule in ("dominant person", "not the background", "colour of each garment", "vague colour", "Do not guess",
                 "cannot be seen", "most striking", "fewer than 40 words", "caption only"):  # fmt: skip
        assert rule in text


def test_a_file_of_templates_is_read_and_one_without_places_is_refused(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("A [man].\n\n  [Shoes],\u2028seen.\n", encoding="utf-8-sig")
    assert read_templates(path) == ("A [man].", "[Shoes],\u2028seen.")
    for content in ("", "A [man].\nA man.\n"):
        path.write_text(content)
        with pytest.raises(DataError, match="must be a template"):
            read_templates(path)


def test_the_grammar_says_what_is_seen_and_no_colour_of_a_hat_that_is_not_there():
    shown = {name: values[0] for name, values in ATTRIBUTES.items()}  # hat and bag: none
    seen = []

    def predict(pixels):
        seen.append(pixels.shape)
        return [shown] * len(pixels)

    captioner = GrammarCaptioner(predict, height=64, width=32, seed=3, count=2)
    captions = captioner.caption(pictures(2), [7, 8])
    worn = {name: value for name, value in shown.items() if name not in ("hat_colour", "bag_colour", "bag_side")}
    assert seen == [(2, 3, 64, 32)]
    assert captions[1] == tuple(compose(worn, stream_seed(3, "caption", 8, i) >> 1).text for i in range(2))
    assert captioner.caption(pictures(2)[:1], [8]) == [captions[1]]  # by number, not by company
    assert captioner.caption([], []) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llava(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("family", [llava, qwen])
def test_a_vision_language_model_answers_the_same_in_a_batch_and_alone_and_looks_at_the_picture(family, tmp_path):
    captioner = VisionLanguageCaptioner(family(tmp_path / "model"), seed=0, words=6)
    several = pictures(3)
    together = captioner.caption(several, [0, 1, 2])
    assert together == [captioner.caption([picture], [number])[0] for number, picture in enumerate(several)]
    assert all(len(texts) == 2 for texts in together)
    assert len({captioner.caption([picture], [0])[0] for picture in several}) > 1
    assert captioner.caption([], []) == []


def test_what_is_asked_is_the_instruction_with_the_pictures_template(model, monkeypatch):
    captioner = VisionLanguageCaptioner(model, seed=1, words=9, count=1)
    asked = []
    real = captioner._processor.apply_chat_template

    def listen(talks, **settings):
        asked.extend(talk[0]["content"][1]["text"] for talk in talks)
        return real(talks, **settings)

    monkeypatch.setattr(captioner._processor, "apply_chat_template", listen)
    captioner.caption(pictures(2), [4, 5])
    assert asked == [instruction(choose_templates(TEMPLATES, 1, number, 1)[0], 9) for number in (4, 5)]


def test_a_folder_without_such_a_model_is_refused_in_one_line(model, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no vision-language model"):
            VisionLanguageCaptioner(folder, seed=0)
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "other/config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(DataError, match="that transformers can load") as error:
        VisionLanguageCaptioner(tmp_path / "other", seed=0)
    assert "\n" not in str(error.value)
    with pytest.raises(ParameterError, match="at least 1"):
        VisionLanguageCaptioner(model, seed=0, count=0)
