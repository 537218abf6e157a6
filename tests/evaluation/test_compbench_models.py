"""BLIP-VQA and CLIPScore on tiny models that were saved and read back, against other ways to the same numbers."""

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_judges import START, VOCABULARY, save_small_blip, save_small_clip, small_blip
from torchscript_archives import write_archive

from components.errors import DataError, ParameterError
from components.evaluation.compbench import blip_vqa, clip_score
from components.evaluation.compbench.blip_vqa import BlipVqa, vqa_score
from components.evaluation.compbench.clip_score import ClipScore
from components.evaluation.compbench.pictures import PromptPicture

QUESTIONS = ["a green bench?", "a blue bowl?", "the red wooden chair and a sheep?"]


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory) -> Path:
    return save_small_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def blip(blip_folder) -> BlipVqa:
    return BlipVqa.open(blip_folder)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory) -> Path:
    return save_small_clip(tmp_path_factory.mktemp("clip"))


def noise(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def by_generation(picture: Image.Image, question: str, size: int = 32) -> float:
    """P(yes) by transformers' own preprocessing and generation in float64: the first new token's softmax, yes over yes and no."""
    from transformers import BlipImageProcessorPil

    model = small_blip().double()
    pixels = BlipImageProcessorPil(size={"height": size, "width": size})(picture, return_tensors="pt").pixel_values
    words = [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in question.replace("?", " ?").split()]
    ids = torch.tensor([[START + 1, *words, VOCABULARY.index("[SEP]")]])
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(ids, pixels.double(), interpolate_pos_encoding=size != 32, **options)
    chance = found.logits[0][0].softmax(0)
    yes, no = (chance[VOCABULARY.index(word)] for word in ("yes", "no"))
    return float(yes / (yes + no))


def test_the_probability_of_yes_is_that_of_the_first_token_that_blip_generates(blip):
    pictures = [noise(0), noise(1)]
    answers = blip.probabilities(pictures, [QUESTIONS, QUESTIONS[:1]])
    wanted = [
        [by_generation(pictures[0], question) for question in QUESTIONS],
        [by_generation(pictures[1], QUESTIONS[0])],
    ]
    for answer, want in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(answer, want, atol=1e-5)
    # The tiny model is worth asking: answers differ between questions and between pictures.
    assert np.ptp(wanted[0]) > 0.01
    assert abs(wanted[0][0] - wanted[1][0]) > 1e-3


def test_a_question_starts_with_blips_own_token_and_not_with_berts(blip, blip_folder):
    wrong = BlipVqa.open(blip_folder)
    wrong._encode = VOCABULARY.index("[CLS]")
    (right,), (other,) = (asked.probabilities([noise(0)], [QUESTIONS]) for asked in (blip, wrong))
    assert np.abs(right - other).max() > 1e-3


def test_answers_do_not_depend_on_what_else_is_asked(blip):
    pictures = [noise(seed) for seed in range(3)]
    together = blip.probabilities(pictures, [QUESTIONS, [], QUESTIONS[2:]])
    assert [len(answers) for answers in together] == [3, 0, 1]
    for question, answer in zip(QUESTIONS, together[0], strict=True):
        (alone,) = blip.probabilities(pictures[:1], [[question]])
        assert alone[0] == pytest.approx(answer, abs=1e-5)
    (alone,) = blip.probabilities(pictures[2:], [QUESTIONS[2:]])
    assert alone[0] == pytest.approx(together[2][0], abs=1e-5)
    assert [len(answers) for answers in blip.probabilities(pictures, [[], [], []])] == [0, 0, 0]


def test_another_picture_size_resizes_the_position_embedding(blip_folder):
    large = BlipVqa.open(blip_folder, image_size=64)
    (answer,) = large.probabilities([noise(0)], [QUESTIONS[:1]])
    assert answer[0] == pytest.approx(by_generation(noise(0), QUESTIONS[0], size=64), abs=1e-5)
    with pytest.raises(ParameterError, match="patch size 16"):
        BlipVqa.open(blip_folder, image_size=40)


def test_the_score_is_the_product_with_the_published_rounding():
    assert vqa_score([0.9, 0.5]) == 0.45
    assert vqa_score([]) == 1
    assert vqa_score([0.00004, 1.0]) == 0  # a factor below half a ten-thousandth is written as 0.0000
    random = np.random.default_rng(0)
    for _ in range(200):
        answers = random.random(random.integers(1, 9)).astype(np.float32)
        reward = torch.tensor([float(f"{answer:.4f}") for answer in answers])  # float32, as in BLIP_vqa.py
        product = reward[0]
        for one in reward[1:]:
            product = product * one
        assert vqa_score(answers) == float(f"{product.item():.4f}")


def test_pictures_are_scored_by_the_phrases_of_their_prompts(blip, tmp_path):
    phrases = {"one": ("a green bench", "the left", "a blue bowl"), "two": ()}
    pictures = []
    for number, prompt in enumerate(["one", "two", "one"]):
        path = tmp_path / f"{prompt}_{number:06}.png"
        noise(number).save(path)
        pictures.append(PromptPicture(prompt, number, path))
    found = blip_vqa.score_pictures(blip, pictures, phrases, batch=2)
    for number in (0, 2):
        wanted = [by_generation(noise(number), question) for question in QUESTIONS[:2]]
        assert found[number] == pytest.approx(wanted[0] * wanted[1], abs=1.5e-4)  # the rounding of two factors
    assert found[1] == 1


def test_a_broken_picture_is_named(blip, tmp_path):
    path = tmp_path / "one_000000.png"
    noise(0).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"one_000000\.png: cannot be decoded: .*; draw it again"):
        blip_vqa.score_pictures(blip, [PromptPicture("one", 0, path)], {"one": ("a bench",)})


def test_a_folder_that_is_no_blip_says_what_to_download(tmp_path, blip_folder):
    with pytest.raises(DataError, match=r"config\.json is missing.*blip-vqa-capfilt-large"):
        BlipVqa.open(tmp_path / "nothing")
    (tmp_path / "config.json").write_text((blip_folder / "config.json").read_text())
    with pytest.raises(DataError, match=r"cannot be read as BLIP.*blip-vqa-capfilt-large"):
        BlipVqa.open(tmp_path)


def test_a_blip_for_captions_is_refused_rather_than_completed_at_random(tmp_path, blip_folder):
    from transformers import BlipForConditionalGeneration

    BlipForConditionalGeneration(small_blip().config).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_text((blip_folder / file).read_text())
    with pytest.raises(DataError, match=r"not a BlipForQuestionAnswering \(\d+ weights missing"):
        BlipVqa.open(tmp_path)


def clip_by_hand(file: Path, picture: Image.Image, text: str) -> float:
    """The cosine through open_clip's own loading of the folder, PIL, and numpy in float64."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{file.parent}").eval().double()
    size, (width, height) = 32, picture.size
    short = min(width, height)
    resized = picture.resize((int(size * width / short), int(size * height / short)), Image.Resampling.BICUBIC)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    array = np.asarray(resized.crop((left, top, left + size, top + size)).convert("RGB")) / 255.0
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy((array - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        seen = model.encode_image(pixels)[0].numpy()
        read = model.encode_text(open_clip.get_tokenizer("ViT-B-32")([text]))[0].numpy()
    return float(seen @ read / np.linalg.norm(seen) / np.linalg.norm(read))


def test_clip_score_is_the_plain_cosine_of_the_middle_square(clip_file):
    clip = ClipScore.open(clip_file)
    pictures, texts = (
        [noise(0, (64, 40)), noise(1, (40, 90))],
        ["A person is looking at a rainbow.", "a chef (cooking)"],
    )
    wanted = [clip_by_hand(clip_file, *pair) for pair in zip(pictures, texts, strict=True)]
    np.testing.assert_allclose(clip.cosines(pictures, texts), wanted, atol=1e-5)
    assert abs(wanted[0] - wanted[1]) > 1e-3


def test_pictures_are_matched_with_the_text_of_their_own_prompt(clip_file, tmp_path):
    clip, pictures = ClipScore.open(clip_file), []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        noise(number).save(path)
        pictures.append(PromptPicture("even" if number % 2 == 0 else "odd", number, path))
    texts = {"even": "an even number", "odd": "something else"}
    found = clip_score.score_pictures(clip, pictures, texts, batch=2)
    wanted = [clip_by_hand(clip_file, noise(one.number), texts[one.prompt]) for one in pictures]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_weights_in_a_pt_file_give_the_same_score(clip_file, tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "open_clip_config.json").write_bytes((clip_file.parent / "open_clip_config.json").read_bytes())
    state = load_file(clip_file)
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    constants = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77)}
    write_archive(tmp_path / "ViT-B-32.pt", {**state, **constants})  # as OpenAI's
    files = (clip_file, tmp_path / "weights.pt", tmp_path / "ViT-B-32.pt")
    first, second, third = (ClipScore.open(file).cosines([noise(0)], ["a bench"]) for file in files)
    assert first == second == third


def test_without_a_config_beside_it_a_file_must_hold_the_published_architecture(clip_file, tmp_path):
    (tmp_path / "small.safetensors").write_bytes(clip_file.read_bytes())
    with pytest.raises(DataError, match=r"not weights of ViT-B-32-quickgelu.*vit_base_patch32_clip_224\.openai"):
        ClipScore.open(tmp_path / "small.safetensors")
    with pytest.raises(DataError, match="no CLIP weights there; download"):
        ClipScore.open(tmp_path / "absent.safetensors")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("code in a weight file was run",))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_weight_file_that_would_run_code_is_refused(clip_file, tmp_path):
    (tmp_path / "open_clip_config.json").write_bytes((clip_file.parent / "open_clip_config.json").read_bytes())
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt", pickle_module=pickle)
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "program.pt")
    for name in ("bomb.pt", "program.pt"):
        with pytest.raises(DataError, match="not weights of") as error:
            ClipScore.open(tmp_path / name)
        assert not re.search(r"\n|trust|weights_only", str(error.value))


def test_a_blip_that_would_run_code_is_refused_in_one_line(blip_folder, tmp_path):
    shutil.copytree(blip_folder, tmp_path / "blip")
    (tmp_path / "blip/model.safetensors").unlink()
    torch.save({"state": Bomb()}, tmp_path / "blip/pytorch_model.bin")
    with pytest.raises(DataError, match=r"cannot be read as BLIP \(holds an object of the type") as error:
        BlipVqa.open(tmp_path / "blip")
    assert not re.search(r"\n|trust|weights_only", str(error.value))


def test_a_text_that_clip_would_cut_is_refused(clip_file):
    clip = ClipScore.open(clip_file)
    assert len(clip.cosines([noise(0)], ["bench " * 75])) == 1
    with pytest.raises(DataError, match="78 tokens, and CLIP reads 77"):
        clip.cosines([noise(0)], ["bench " * 76])


def test_opening_a_model_leaves_the_global_generator_alone(clip_file, blip_folder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ClipScore.open(clip_file)
    BlipVqa.open(blip_folder)
    assert torch.equal(before, torch.get_rng_state())
