"""Reading prompts, planning pictures, and naming files: all that happens before and after drawing."""

import csv
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.errors import DataError
from components.training.randomness import stream_seed
from pipelines.generating.plan import Picture, plan, plan_digest
from pipelines.generating.prompts import Prompt, Skipped, read_prompts
from pipelines.generating.samples import file_name

COMPBENCH = b"a green bench and a blue bowl\r\na blue bench and a green bowl\r\na black and white shower curtain"


def read(tmp_path, name: str, content: bytes, **options):
    path = tmp_path / name
    path.write_bytes(content)
    return read_prompts(path, **options)


def test_a_text_file_has_a_prompt_a_line_and_its_line_is_its_id(tmp_path):
    expected = [
        Prompt("1", "a green bench and a blue bowl"),
        Prompt("2", "a blue bench and a green bowl"),
        Prompt("3", "a black and white shower curtain"),
    ]
    for content in (COMPBENCH, COMPBENCH + b"\r\n", COMPBENCH.replace(b"\r\n", b"\n"), b"\xef\xbb\xbf" + COMPBENCH):
        assert read(tmp_path, "color_val.txt", content) == (expected, [])


def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path):
    prompts, _ = read(tmp_path, "p.txt", "one\u2028line\nanother\u0085one".encode())
    assert [prompt.text for prompt in prompts] == ["one\u2028line"]  # U+0085 is a control character, and no line end


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "prompt is empty"),
        (b" \t ", "prompt is empty"),
        (b"caf\xe9", "prompt is not UTF-8"),
        (b"a red\x00hat", "prompt has the control character U+0000"),
        (b"x" * 31, "has 31 characters; the limit is 30"),
    ],
)
def test_a_bad_line_is_told_and_the_others_stay(tmp_path, line, reason):
    prompts, skipped = read(tmp_path, "p.txt", b"first\n" + line + b"\nthird\n", max_characters=30)
    assert prompts == [Prompt("1", "first"), Prompt("3", "third")]
    assert [(one.line, one.reason) for one in skipped] == [(2, reason)]
    json.dumps([one.begins for one in skipped]).encode()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt_id": "b"}, "prompt is missing"),
        ({"prompt": 7}, "prompt is not text but int"),
        ({"prompt": ["a"]}, "prompt is not text but list"),
        ({"prompt": "\ud800"}, "prompt is not UTF-8"),
        ({"prompt": "x", "prompt_id": "a"}, "prompt_id 'a' is that of line 1"),
        ({"prompt": "x", "prompt_id": ""}, "prompt_id is empty"),
        ({"prompt": "x", "prompt_id": True}, "prompt_id is not text but bool"),
        ({"prompt": "x", "seed": -1}, "seed -1 is not a whole number from 0 to 2^63 - 1"),
        ({"prompt": "x", "seed": 2**63}, f"seed {2**63} is not a whole number from 0 to 2^63 - 1"),
        ({"prompt": "x", "seed": 1.5}, "seed 1.5 is not a whole number from 0 to 2^63 - 1"),
        ({"prompt": "x", "seed": "many"}, "seed 'many' is not a whole number from 0 to 2^63 - 1"),
        ([1], "is not a JSON object"),
    ],
)
def test_a_bad_row_is_told_and_the_others_stay(tmp_path, row, reason):
    rows = [{"prompt": "first", "prompt_id": "a"}, row, {"prompt": "third"}]
    prompts, skipped = read(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert prompts == [Prompt("a", "first"), Prompt("3", "third")]
    assert [(one.line, one.reason) for one in skipped] == [(2, reason)]
    json.dumps([one.begins for one in skipped], ensure_ascii=False).encode()


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_manifest_reaches_no_file_outside_of_its_folder(tmp_path, column):
    inside, outside = tmp_path / "set" / "in.png", tmp_path / "out.png"
    inside.parent.mkdir()
    for file in (inside, outside):
        Image.new("RGB", (4, 4)).save(file)
    others = {"image": "in.png"} if column == "mask" else {}
    given = ["in.png", "../out.png", str(outside), "..\\out.png"]
    rows = [{"prompt": "a hat", **others, column: name} for name in given]
    good, skipped = read(inside.parent, "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert [getattr(prompt, column).path for prompt in good] == [inside.resolve()]
    assert [one.line for one in skipped] == [2, 3, 4]
    assert all("path leaves the folder" in one.reason for one in skipped)


def test_a_line_that_is_not_json_is_told_with_its_beginning(tmp_path):
    content = b'{"prompt": "good"}\n{"prompt": "torn\n' + b"[" * 100_000
    prompts, skipped = read(tmp_path, "p.jsonl", content)
    assert prompts == [Prompt("1", "good")]
    assert skipped[0] == Skipped(2, "is not a JSON object", '{"prompt": "torn')
    assert skipped[1].reason == "is not a JSON object"


def test_the_three_manifests_read_alike(tmp_path):
    rows = [("a, b", "id one", 5), ('say "cheese"\nplease', "2", 2**63 - 1), ("c", "three", None)]
    expected = [Prompt(prompt_id, text, seed) for text, prompt_id, seed in rows]
    names = ["prompt", "prompt_id", "seed", "note"]
    with open(tmp_path / "p.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([names, *([*row, "x"] for row in rows)])
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, [*row, "x"], strict=True))) + "\n" for row in rows)
    )
    columns = list(zip(*rows, strict=True))
    pq.write_table(pa.table([*map(pa.array, columns), pa.array(["x"] * 3)], names=names), tmp_path / "p.parquet")
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        assert read_prompts(tmp_path / name) == (expected, []), name


def test_numbers_as_pandas_writes_them_are_numbers(tmp_path):
    table = pa.table({"prompt": ["a", "b"], "prompt_id": [7, 8], "seed": [42.0, math.nan]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == ([Prompt("7", "a", 42), Prompt("8", "b", None)], [])


def test_parquet_text_that_is_not_utf8_is_told(tmp_path):
    raw = pa.array([b"good", b"caf\xe9"], pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"prompt": text}), tmp_path / "p.parquet")
    prompts, skipped = read_prompts(tmp_path / "p.parquet")
    assert prompts == [Prompt("1", "good")]
    assert [(one.line, one.reason) for one in skipped] == [(2, "prompt is not UTF-8")]


def test_a_csv_row_is_known_by_the_line_where_it_begins(tmp_path):
    _, skipped = read(tmp_path, "p.csv", b'prompt,seed\n"two\nlines",1\nbad,x\ngood,3\n')
    assert [one.line for one in skipped] == [4]


def test_a_prompt_with_a_comma_and_no_quotes_is_told_and_never_shortened(tmp_path):
    content = b'prompt,seed\na red cube, on a table,3\n"a man, a dog", 4\na hat,,\na cat\n'
    prompts, skipped = read(tmp_path, "p.csv", content)
    assert prompts == [Prompt("3", "a man, a dog", 4), Prompt("4", "a hat"), Prompt("5", "a cat")]
    reason = "has 3 cells, the first line 2; a prompt with a comma needs quotes"
    assert skipped == [Skipped(2, reason, "a red cube,on a table,3")]


@pytest.mark.parametrize("content", [b'prompt\na hat\n"red car\na dog\n', b'prompt\na hat\n"red car\na\n"round" dog\n'])
def test_a_quote_that_is_not_closed_joins_no_prompts(tmp_path, content):
    with pytest.raises(DataError, match=r"p\.csv: line 3 is not CSV .* must end with one"):
        read(tmp_path, "p.csv", content)
    assert read(tmp_path, "p.csv", b'prompt\na 5" disk\n')[0] == [Prompt("2", 'a 5" disk')]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b"[]", "prompts are read from .txt"),
        ("p.csv", b"text,seed\na,1\n", "has no column `prompt`, only text, seed"),
        ("p.csv", b"", "has no column `prompt`, only nothing"),
        ("p.csv", b"prompt,seed,prompt\na,1,b\n", "has two columns 'prompt'; rename one"),
        ("p.parquet", b"PAR1", "not Parquet"),
        ("p.txt", b"", "holds no prompt that can be drawn"),
        ("p.txt", b"\n\n", "holds no prompt that can be drawn: line 1: prompt is empty"),
    ],
)
def test_a_file_without_prompts_is_one_line(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.txt")


def test_the_plan_counts_pictures_and_cuts_them_into_shards():
    shards = plan([Prompt("x", "a"), Prompt("y", "b", 42)], seed=3, images_per_prompt=3, shard_size=4)
    assert [len(shard.pictures) for shard in shards] == [4, 2]
    assert [shard.name for shard in shards] == ["00000.parquet", "00001.parquet"]
    pictures = [picture for shard in shards for picture in shard.pictures]
    assert [picture.image_id for picture in pictures] == list(range(6))
    assert [picture.index for picture in pictures] == [0, 1, 2, 0, 1, 2]
    assert [p.seed for p in pictures] == [*(stream_seed(3, "picture", "x", index) for index in range(3)), 42, 43, 44]


def test_a_prompts_noise_depends_neither_on_its_neighbours_nor_on_their_number():
    def seeds(*ids: str, number: int) -> dict[tuple[str, int], int]:
        shards = plan([Prompt(one, "text") for one in ids], 0, number, 2)
        return {(p.prompt_id, p.index): p.seed for shard in shards for p in shard.pictures}

    few, many = seeds("b", number=1), seeds("a", "b", "c", number=3)
    assert few.items() <= many.items()
    assert len(set(many.values())) == 9


def test_a_seed_at_the_top_goes_on_at_zero():
    (shard,) = plan([Prompt("x", "a", 2**63 - 1)], 0, 2, 2)
    assert [picture.seed for picture in shard.pictures] == [2**63 - 1, 0]


def test_the_plans_digest_changes_with_every_part_of_it():
    prompts = [Prompt("x", "a"), Prompt("y", "b")]
    digests = [
        plan_digest(plan(prompts, 0, 2, 2)),
        plan_digest(plan(prompts, 1, 2, 2)),
        plan_digest(plan(prompts, 0, 1, 2)),
        plan_digest(plan(prompts, 0, 2, 3)),
        plan_digest(plan(prompts[::-1], 0, 2, 2)),
        plan_digest(plan([Prompt("x", "a"), Prompt("y", "c")], 0, 2, 2)),
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red cup", "a red cup_000007.png"),
        ("The cup, red.", "The cup, red._000007.png"),
        ("a cup and/or a mug", "a cup and or a mug_000007.png"),
        ("../../etc/passwd", ".. .. etc passwd_000007.png"),
        ("back\\slash\nline", "back slash line_000007.png"),
        ("..", ".._000007.png"),
    ],
)
def test_a_sample_is_named_as_t2i_compbench_names_it(prompt, name):
    assert file_name(Picture(7, "x", prompt, 0, 0)) == name


@pytest.mark.parametrize("letter", ["x", "é", "猫", "🐈"])
def test_a_prompt_too_long_for_a_file_name_is_cut_between_letters(tmp_path, letter):
    name = file_name(Picture(1234567, "x", letter * 300, 0, 0))
    prompt, _, number = name.rpartition("_")
    assert number == "1234567.png"
    assert set(prompt) == {letter}
    assert 255 - len(letter.encode()) < len(name.encode()) <= 255
    (tmp_path / name).touch()
