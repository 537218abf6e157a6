import json
import sys
import types
from pathlib import Path

import pytest

from components.errors import DataError, ParameterError
from components.evaluation.compbench import phrases
from components.evaluation.compbench.phrases import Reading, cleaned, parse_prompts, questions, read_phrases
from components.evaluation.compbench.pictures import match_pictures
from components.evaluation.compbench.prompts import prompt_files, read_prompts, relations
from pipelines.generating.prompts import read_prompts as generated_prompts

# Lines of the published files: they end in \r\n, and the last line of some in nothing.
COLOR = ["a green bench and a blue bowl", "The white and yellow clock with a red roof reads 11:44."]
COMPLEX = [
    "The red hat was on top of the brown coat rack.",
    "The black phone was resting on the brown charger.",
    "The smooth black river flowed next to the tall green trees.",
]


def published(folder: Path, name: str, lines: list[str]) -> Path:
    path = folder / name
    path.write_bytes("\r\n".join(lines).encode())
    return path


def name_of(prompt: str, number: int) -> str:
    return f"{prompt}_{number:06}.png"


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_prompts_are_read_as_published(tmp_path):
    assert read_prompts(published(tmp_path, "color_val.txt", [*COLOR, ""])) == COLOR
    assert read_prompts(published(tmp_path, "shape_val.txt", ["a cubic ice cube\tseen", "an oval plum"])) == [
        "a cubic ice cube",
        "an oval plum",
    ]


def test_prompts_are_those_that_generate_reads(tmp_path):
    """Also with the byte order mark of a Windows editor, and with a character that only some programs end a line at."""
    path = tmp_path / "color_val.txt"
    path.write_bytes("\ufeffa red\u2028car\r\na blue dog\n".encode())
    assert read_prompts(path) == ["a red\u2028car", "a blue dog"]
    assert read_prompts(path) == [prompt.text for prompt in generated_prompts(path)[0]]


def test_a_folder_gives_every_category_that_is_there_and_a_file_its_own(tmp_path):
    for name in ("texture_val.txt", "color_val.txt", "complex_val.txt", "complex_val_action.txt"):
        published(tmp_path, name, COLOR)
    assert list(prompt_files(tmp_path)) == ["color", "texture", "complex"]
    assert prompt_files(tmp_path / "color_val.txt") == {"color": tmp_path / "color_val.txt"}


def test_a_file_whose_name_says_no_category_is_refused(tmp_path):
    for name in ("mine.txt", "color.txt", "complex_val_action.txt"):
        with pytest.raises(ParameterError, match=r"color_val\.txt"):
            prompt_files(published(tmp_path, name, COLOR))
    with pytest.raises(DataError, match="no such prompt file"):
        prompt_files(tmp_path / "color_val.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no prompt file"):
        prompt_files(tmp_path / "empty")


def test_a_repeated_prompt_is_counted_and_not_refused(tmp_path):
    """The color file before September 2025 repeats five prompts; the published script draws ten pictures for each line."""
    prompts = read_prompts(published(tmp_path, "color_val.txt", [*COLOR, COLOR[0]]))
    assert prompts == [*COLOR, COLOR[0]]
    names = [name_of(prompt, place * 2 + copy) for place, prompt in enumerate(prompts) for copy in range(2)]
    folder = pictures(tmp_path / "samples", *names)
    found = match_pictures(prompts, folder, per_prompt=2)
    assert [picture.path.name for picture in found.pictures] == names
    assert (found.missing, found.extra) == ({}, ())
    (folder / names[-1]).unlink()
    assert match_pictures(prompts, folder, per_prompt=2).missing == {COLOR[0]: 1}


def test_a_file_without_a_prompt_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(published(tmp_path, "color_val.txt", ["", " "]))


def test_complex_prompts_name_a_spatial_relation_an_action_or_both(tmp_path):
    published(tmp_path, "complex_val_spatial.txt", [COMPLEX[0].lower()])  # compared in lower case,
    published(tmp_path, "complex_val_action.txt", [COMPLEX[1] + " And more."])  # and up to the first full stop
    assert relations(COMPLEX, tmp_path) == {COMPLEX[0]: "spatial", COMPLEX[1]: "action", COMPLEX[2]: "both"}
    (tmp_path / "complex_val_action.txt").unlink()
    with pytest.raises(DataError, match=r"complex_val_action\.txt: missing"):
        relations(COMPLEX, tmp_path)


def test_pictures_are_found_by_the_published_names(tmp_path):
    names = [name_of(prompt, 2 * place + copy) for place, prompt in enumerate(COLOR) for copy in (0, 1)]
    names += [name_of(COLOR[0], 1_000_000), "a red_car_000007.png", "grid.png", "a cake_1.png"]
    found = match_pictures([*COLOR, "a blue cake"], pictures(tmp_path / "samples", *names), per_prompt=3)
    assert [(one.prompt, one.number) for one in found.pictures] == [
        (COLOR[0], 0),
        (COLOR[0], 1),
        (COLOR[1], 2),
        (COLOR[1], 3),
        (COLOR[0], 1_000_000),
    ]
    assert all(one.path.name == name_of(one.prompt, one.number) for one in found.pictures)
    assert found.missing == {COLOR[1]: 1, "a blue cake": 3}
    assert found.extra == ("a cake_1.png", "a red_car_000007.png", "grid.png")


def test_a_prompt_with_an_underscore_keeps_its_whole_name(tmp_path):
    folder = pictures(tmp_path, "a red_car_000000.png")
    assert match_pictures(["a red_car"], folder, 1).pictures[0].prompt == "a red_car"


def test_a_folder_without_a_picture_of_the_prompts_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        match_pictures(COLOR, tmp_path / "samples")
    with pytest.raises(DataError, match="none of its 1 files"):
        match_pictures(COLOR, pictures(tmp_path, "another prompt_000000.png"))


def test_four_phrases_are_dropped_before_the_first_eight_are_taken():
    found = questions(["the left", *(f"thing {n}" for n in range(8)), "top", "thing 8"])
    assert found == [f"thing {n}?" for n in range(8)]
    # Exactly as written: other cases and longer phrases stay (BLIP_vqa.py compares strings).
    assert questions(["The left", "the left side", "the side", "the right"]) == ["the left?", "the left side?"]
    assert questions([]) == []


def test_questions_are_cleaned_as_blip_was_trained():
    assert cleaned('The "Big" (red) No.1 Car: 11:44;  ') == "the big red no1 car 1144"
    assert cleaned("word " * 60 + "?") == " ".join(["word"] * 50)


def test_phrases_come_from_a_file_in_either_form(tmp_path):
    path = tmp_path / "phrases.json"
    plain = {COLOR[0]: ["a green bench", "a blue bowl"], "other": []}
    full = {
        COMPLEX[0]: {"phrases": ["The red hat", "top"], "without_adjectives": "The hat was on top of the coat rack ."}
    }
    path.write_text(json.dumps(plain | full), encoding="utf-8-sig")
    assert read_phrases(path, [COLOR[0], COMPLEX[0]]) == {
        COLOR[0]: Reading(("a green bench", "a blue bowl")),
        COMPLEX[0]: Reading(("The red hat", "top"), "The hat was on top of the coat rack ."),
    }


def test_what_is_written_of_readings_is_read_again(tmp_path):
    readings = {COLOR[0]: Reading(("a bench",), "a bench and a bowl"), COLOR[1]: Reading(())}
    (tmp_path / "phrases.json").write_text(json.dumps(phrases.to_json(readings)))
    assert read_phrases(tmp_path / "phrases.json", COLOR) == readings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "an object prompt"),
        ("{}", "1 of 1 prompts are not in it, such as 'a bench'"),
        ('{"a bench": "a bench"}', "a list of phrases is needed"),
        ('{"a bench": [1]}', "a list of phrases is needed"),
        ('{"a bench": {"phrases": [], "without_adjectives": 1}}', "must be text"),
    ],
)
def test_a_file_of_phrases_that_is_none_says_why(tmp_path, content, message):
    (tmp_path / "phrases.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_phrases(tmp_path / "phrases.json", ["a bench"])


def test_spacy_is_asked_for_noun_chunks_and_for_the_words_that_are_no_adjectives(monkeypatch):
    word, seen = types.SimpleNamespace, []

    def language(text: str) -> "Document":
        seen.append(text)
        return Document([word(text="red", pos_="ADJ"), word(text="hat", pos_="NOUN"), word(text=".", pos_="PUNCT")])

    class Document(list):
        noun_chunks = (word(text="red hat"),)

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load={"en_core_web_sm": language}.__getitem__))
    assert parse_prompts(["red hat."]) == {"red hat.": Reading(("red hat",), "hat .")}
    assert seen == ["red hat."]


def test_without_spacy_or_its_model_one_line_says_what_to_do(monkeypatch):
    def load(name: str) -> None:
        raise OSError(f"[E050] Can't find model {name!r}")

    for spacy in (None, types.SimpleNamespace(load=load)):
        monkeypatch.setitem(sys.modules, "spacy", spacy)
        with pytest.raises(ParameterError, match=r"noun phrases are needed.*en_core_web_sm") as error:
            parse_prompts(["a bench"])
        assert "\n" not in str(error.value)
