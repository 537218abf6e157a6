"""The command from prompt files and folders of pictures to its results, with tiny models in the place of the published ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_judges import save_small_blip, save_small_clip

from components.evaluation.compbench.blip_vqa import BlipVqa, vqa_score
from components.evaluation.compbench.clip_score import ClipScore
from components.evaluation.compbench.phrases import questions
from pipelines.__main__ import main

COLOR = ["a green bench and a blue bowl", "a blue bench and a green cake", "a red apple and a green sheep"]
NON_SPATIAL = ["A chef is holding a red apple.", "A sheep is looking at a car."]
COMPLEX = [
    "The red bowl was on top of the blue chair.",
    "The green sheep is eating the red apple.",
    "The red car is by a bench.",
]
PHRASES = {
    COLOR[0]: ["a green bench", "a blue bowl"],
    COLOR[1]: ["a blue bench", "a green cake"],
    COLOR[2]: ["a red apple", "a green sheep"],
    COMPLEX[0]: {
        "phrases": ["The red bowl", "top", "the blue chair"],
        "without_adjectives": "The bowl was on top of the chair .",
    },
    COMPLEX[1]: {
        "phrases": ["The green sheep", "the red apple"],
        "without_adjectives": "The sheep is eating the apple .",
    },
    COMPLEX[2]: {"phrases": ["The red car", "a bench"], "without_adjectives": "The car is by a bench ."},
}
COPIES = 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "phrases.json").write_text(json.dumps(PHRASES))
    return {
        "blip": save_small_blip(folder / "blip"),
        "clip": save_small_clip(folder / "clip"),
        "phrases": folder / "phrases.json",
    }


@pytest.fixture
def bench(tmp_path) -> Path:
    """Three categories' prompts, and two pictures of each prompt by two arms."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name, lines in {"color": COLOR, "non_spatial": NON_SPATIAL, "complex": COMPLEX}.items():
        (prompts / f"{name}_val.txt").write_text("\r\n".join(lines))
        for arm in ("taca", "base"):
            draw(tmp_path / arm / name / "samples", lines, arm)
    (prompts / "complex_val_spatial.txt").write_text(COMPLEX[0])
    (prompts / "complex_val_action.txt").write_text(COMPLEX[1])
    return tmp_path


def draw(folder: Path, prompts: list[str], arm: str) -> None:
    folder.mkdir(parents=True)
    for number in range(COPIES * len(prompts)):
        random = np.random.default_rng([len(arm), arm == "taca", number])
        blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(blocks).resize((48, 40), Image.Resampling.NEAREST)
        picture.save(folder / f"{prompts[number // COPIES]}_{number:06}.png")


def run(bench: Path, *options: object, prompts: str = "prompts", images: str = "taca") -> int:
    common = [
        "--prompts",
        bench / prompts,
        "--images",
        bench / images,
        "--output",
        bench / "out",
        "--per-prompt",
        COPIES,
    ]
    return main(["compbench", *map(str, [*common, *options])])


def results(bench: Path) -> dict:
    return json.loads((bench / "out" / "results.json").read_text())


def answers(file: Path) -> list[float]:
    rows = json.loads(file.read_text())
    assert [row["question_id"] for row in rows] == list(range(len(rows)))
    return [float(row["answer"]) for row in rows]


def opened(folder: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.iterdir(), key=lambda path: path.stem[-6:])]


def asked_by_hand(blip: BlipVqa, folder: Path, prompts: list[str], phrases: dict[str, list[str]]) -> list[float]:
    """The product over phrases, picture by picture and question by question."""
    return [
        vqa_score(
            [
                blip.probabilities([picture], [[question]])[0][0]
                for question in questions(phrases[prompts[place // COPIES]])
            ]
        )
        for place, picture in enumerate(opened(folder))
    ]


def test_all_categories_are_scored_compared_and_written(bench, weights, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = [item for name, path in weights.items() for item in (f"--{name}", path)]
    assert run(bench, *given, "--baseline", bench / "base", "--grid", 2) == 0
    found, out = results(bench)["categories"], bench / "out"

    blip, clip = BlipVqa.open(weights["blip"]), ClipScore.open(weights["clip"])
    for arm, folder in (("taca", out / "color"), ("base", out / "color" / "baseline")):
        wanted = asked_by_hand(blip, bench / arm / "color/samples", COLOR, PHRASES)
        np.testing.assert_allclose(answers(folder / "annotation_blip/vqa_result.json"), wanted, atol=2e-4)
        metric = found["color"]["arms"][arm]["metrics"]["BLIP-VQA"]
        assert metric["mean"] == pytest.approx(np.mean(wanted), abs=2e-4)
        assert metric["low"] <= metric["mean"] <= metric["high"]
        assert metric["prompts"][COLOR[2]] == pytest.approx(np.mean(wanted[4:]), abs=2e-4)
    means = [found["color"]["arms"][arm]["metrics"]["BLIP-VQA"]["mean"] for arm in ("taca", "base")]
    assert means[0] != means[1]
    assert found["color"]["difference"]["BLIP-VQA"]["mean"] == pytest.approx(means[0] - means[1])

    prompts = [prompt for prompt in NON_SPATIAL for _ in range(COPIES)]
    wanted = clip.cosines(opened(bench / "taca/non_spatial/samples"), prompts)
    np.testing.assert_allclose(answers(out / "non_spatial/annotation_clip/vqa_result.json"), wanted, atol=1e-6)

    printed = capsys.readouterr().out
    assert f"{means[0]:.4f} [" in printed
    assert f"{means[0] - means[1]:+.4f} [" in printed
    assert {path.name for path in out.iterdir()} == {"results.json", "phrases.json", "color", "non_spatial", "complex"}
    with Image.open(out / "color/grid.png") as grid:
        assert grid.height < grid.width  # two prompts, two arms and the labels
    about = results(bench)["measured_with"]
    assert about["blip"]["pixels"] == 32
    assert about["phrases"] == "from phrases.json"


def test_complex_prompts_get_the_parts_that_can_be_had_and_say_what_is_lacking(bench, weights, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = [item for name, path in weights.items() for item in (f"--{name}", path)]
    assert run(bench, *given, prompts="prompts/complex_val.txt", images="taca/complex") == 0
    found = results(bench)["categories"]["complex"]["arms"]["complex"]
    clip = ClipScore.open(weights["clip"])
    texts = [PHRASES[prompt]["without_adjectives"] for prompt in COMPLEX for _ in range(COPIES)]
    action = clip.cosines(opened(bench / "taca/complex/samples"), texts)
    np.testing.assert_allclose(answers(bench / "out/complex/annotation_clip/vqa_result.json"), action, atol=1e-6)
    attribute = answers(bench / "out/complex/annotation_blip/vqa_result.json")
    part = found["metrics"]["3-in-1, action prompts"]
    assert part["prompts"] == {COMPLEX[1]: pytest.approx(np.mean(0.5 * (action + attribute)[2:4]))}
    assert "3-in-1" not in found["metrics"]
    assert not (bench / "out/complex/annotation_3_in_1").exists()
    printed = capsys.readouterr().out
    assert "3-in-1 left out: it needs UniDet" in printed

    spatial = np.array([0.75, 0, 0.5, 0.6, 0, 1])
    file = bench / "taca/complex/labels/annotation_obj_detection_2d/vqa_result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([{"question_id": number, "answer": score} for number, score in enumerate(spatial)]))
    assert run(bench, *given, prompts="prompts/complex_val.txt", images="taca/complex/samples") == 0
    wanted = [*(spatial + attribute)[:2] / 2, *(action + attribute)[2:4] / 2, *(spatial + attribute + action)[4:] / 3]
    np.testing.assert_allclose(answers(bench / "out/complex/annotation_3_in_1/vqa_result.json"), wanted, atol=1e-6)
    metrics = results(bench)["categories"]["complex"]["arms"]["complex"]["metrics"]
    assert metrics["3-in-1"]["mean"] == pytest.approx(np.mean(wanted))
    assert "3-in-1, action prompts" not in metrics


def test_missing_and_foreign_pictures_are_reported_and_the_rest_is_scored(bench, weights, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (bench / "taca/non_spatial/samples" / f"{NON_SPATIAL[0]}_000001.png").unlink()
    (bench / "taca/non_spatial/samples/notes.txt").write_text("")
    (bench / "taca/color").rename(bench / "elsewhere")
    assert run(bench, "--clip", weights["clip"], "--grid", 0, "--phrases", weights["phrases"]) == 0
    found = results(bench)
    arm = found["categories"]["non_spatial"]["arms"]["taca"]
    assert (arm["pictures"], arm["missing"], arm["extra"]) == (3, {NON_SPATIAL[0]: 1}, ["notes.txt"])
    assert found["without_pictures"] == ["color"]
    assert not list((bench / "out").rglob("grid.png"))
    printed = capsys.readouterr().out
    assert "non_spatial of taca: 1 pictures of 1 prompts are missing" in printed
    assert "1 files are not pictures of these prompts, such as 'notes.txt'" in printed
    assert "color: no folder of pictures, not scored" in printed
    assert "complex of taca: BLIP-VQA left out: no BLIP folder is given" in printed


def test_a_prompt_that_the_file_repeats_weighs_twice_in_the_published_mean(bench, weights, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [*NON_SPATIAL, NON_SPATIAL[0]]
    (bench / "prompts/non_spatial_val.txt").write_text("\n".join(lines))
    shutil.rmtree(bench / "taca/non_spatial")
    draw(bench / "taca/non_spatial/samples", lines, "taca")
    chosen = {"prompts": "prompts/non_spatial_val.txt", "images": "taca/non_spatial"}
    assert run(bench, "--clip", weights["clip"], "--grid", 0, **chosen) == 0
    category = results(bench)["categories"]["non_spatial"]
    (arm,) = category["arms"].values()
    assert (category["prompts"], category["repeated"], arm["pictures"], arm["missing"]) == (2, 1, 6, {})
    means = arm["metrics"]["CLIPScore"]["prompts"]
    assert arm["metrics"]["CLIPScore"]["mean"] == pytest.approx((2 * means[NON_SPATIAL[0]] + means[NON_SPATIAL[1]]) / 3)
    assert "non_spatial: 1 lines repeat a prompt" in capsys.readouterr().out


def test_without_anything_to_measure_with_the_command_ends_with_2_and_one_line(bench, capsys):
    assert run(bench) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--blip FOLDER" in error
    assert "--clip FILE" in error
    assert not (bench / "out").exists()
    # CLIP is no metric of colour.
    assert run(bench, "--clip", bench / "x", prompts="prompts/color_val.txt", images="taca/color") == 2


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--blip", "nowhere", "--phrases", "PHRASES"], 3, "no BLIP there"),
        (["--clip", "nowhere", "--phrases", "PHRASES"], 3, "no CLIP weights there"),
        (["--blip", "nowhere", "--phrases", "nowhere"], 3, "cannot be read as JSON"),
        (["--clip", "nowhere", "--per-prompt", "0"], 2, "--per-prompt 0"),
        (["--clip", "nowhere", "--baseline", "nowhere"], 3, "no folder of pictures named"),
    ],
)
def test_a_mistake_costs_one_line(bench, weights, capsys, options, code, words):
    options = [str(weights["phrases"]) if option == "PHRASES" else option for option in options]
    assert run(bench, *options) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_same_pictures_give_the_same_results(bench, weights):
    contents = []
    for _ in range(2):
        assert (
            run(
                bench,
                "--clip",
                weights["clip"],
                prompts="prompts/non_spatial_val.txt",
                images="taca/non_spatial/samples",
            )
            == 0
        )
        contents.append({path.name: path.read_bytes() for path in (bench / "out").rglob("*.*")})
    assert contents[0] == contents[1]
    assert set(results(bench)["categories"]["non_spatial"]["arms"]) == {"non_spatial"}
