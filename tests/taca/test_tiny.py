import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline

from components.errors import ParameterError
from components.taca.conventions import encode_pictures, signed_pixels
from components.taca.toy.autoencoder import AutoencoderTask, pixel_batches, psnr, reconstruct, set_latent_scale
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline, word_vocabulary
from components.taca.toy.training import TextToImageTask, base_batches, token_ids
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit

SMALL = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1, text_tokens=6)
WORDS = ("blue", "hat", "red", "t-shirt")


@pytest.fixture
def pipe():
    return build_tiny_pipeline(SMALL, WORDS, seed=0)


def draw(pipe, prompts):
    return pipe(
        prompts,
        height=16,
        width=8,
        max_sequence_length=6,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    ).images


def test_diffusers_own_classes_read_the_saved_folder_and_draw_the_same_picture(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    found = DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    parts = [type(part).__module__.split(".")[0] for part in (found, *found.components.values()) if part is not None]
    assert len(parts) == 8
    assert set(parts) == {"diffusers", "transformers"}
    words = ["red hat", "blue t-shirt"]
    torch.testing.assert_close(draw(found, words), draw(pipe, words), rtol=0, atol=1e-5)


@pytest.mark.heavy
def test_any_diffusers_reads_the_saved_folder_and_draws_the_same_picture(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "tiny")
    torch.save(draw(pipe, ["red hat", "blue t-shirt"]), tmp_path / "expected.pt")
    # A fresh process without this project: nothing of ours may be needed to read the folder.
    program = """
import torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained("tiny", use_safetensors=True)
images = pipe(["red hat", "blue t-shirt"], height=16, width=8, max_sequence_length=6, num_inference_steps=3,
    generator=torch.Generator().manual_seed(1), output_type="pt").images
torch.testing.assert_close(images, torch.load("expected.pt"), rtol=0, atol=1e-5)
"""
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_same_seed_builds_the_same_bytes_whatever_the_global_random_state(tmp_path):
    for name, state in (("a", 1), ("b", 2)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        build_tiny_pipeline(SMALL, WORDS, seed=5).save_pretrained(tmp_path / name)
        assert torch.equal(torch.get_rng_state(), before)
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_default_model_has_five_image_tokens_a_text_token():
    config = TinyConfig()
    tokens = (64 // 4) * (32 // 4)
    assert tokens >= 5 * config.text_tokens
    assert sum(config.rope_axes) == config.width // config.heads


def test_words_are_tokens_and_unknown_words_are_marked(pipe):
    assert word_vocabulary(["A red t-shirt,", "red HAT."]) == ("a", "hat", "red", "t-shirt")
    ids = token_ids(pipe, ["Red, t-shirt!", "green", ""])
    names = [pipe.tokenizer.convert_ids_to_tokens(row) for row in ids["clip_ids"].tolist()]
    assert names[0][:4] == ["<s>", "red", "t-shirt", "</s>"]
    assert names[1][:3] == ["<s>", "<unk>", "</s>"]
    assert ids["clip_ids"].shape == (3, 8)
    assert ids["t5_ids"].shape == (3, 6)
    assert (ids["t5_ids"][2] == pipe.tokenizer_2.pad_token_id).all()


def test_the_pooled_text_depends_on_every_word_but_not_on_padding(pipe):
    _, pooled, _ = pipe.encode_prompt(["red hat", "blue hat", "red t-shirt"], max_sequence_length=6)
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3
    assert (pooled[0] - pooled[2]).abs().max() > 1e-3
    ids = pipe.tokenizer(["red hat"], padding=False, return_tensors="pt").input_ids
    torch.testing.assert_close(pipe.text_encoder(ids).pooler_output[0], pooled[0], rtol=0, atol=1e-5)


def test_an_impossible_width_is_refused():
    with pytest.raises(ParameterError, match="width 100"):
        TinyConfig(width=100, heads=3)
    with pytest.raises(ParameterError, match="vocabulary is empty"):
        build_tiny_pipeline(SMALL, (), seed=0)


def test_the_autoencoder_learns_and_its_latents_get_unit_variance(pipe):
    random = torch.Generator().manual_seed(0)
    flat = torch.randint(0, 256, (8, 3, 2, 2), generator=random, dtype=torch.uint8)
    pixels = flat.repeat_interleave(8, 2).repeat_interleave(4, 3)  # (8, 3, 16, 8): four flat patches
    before = psnr(reconstruct(pipe.vae, pixels), pixels).mean()
    task = AutoencoderTask(pipe.vae, seed=0)
    fit(task, pixel_batches(pixels, batch_size=4, seed=0), LoopConfig(steps=150, learning_rate=1e-2), LocalContext())
    assert psnr(reconstruct(pipe.vae, pixels), pixels).mean() > before + 8
    set_latent_scale(pipe.vae, pixels.split(3))
    latents = encode_pictures(pipe, pixels)
    assert latents.mean().abs() < 1e-3
    assert latents.var(correction=0) == pytest.approx(1, abs=1e-3)


class Spy(torch.nn.Module):
    """Encodes each pixel as its own latent, and keeps what it is asked to decode."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.decoded = []

    def encode(self, pixels):
        zero = torch.zeros_like(pixels)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.weight * pixels, std=zero, var=zero, logvar=zero))

    def decode(self, latents):
        self.decoded.append(latents.detach())
        return SimpleNamespace(sample=latents)


def test_latent_noise_is_white_and_of_a_level_drawn_for_each_picture_from_its_own_spread():
    pixels = torch.rand(256, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    pixels[:128] = (
        0.5 + (pixels[:128] - 0.5) / 4
    )  # pictures of little contrast, whose latents have a quarter of the spread
    spy = Spy()
    AutoencoderTask(spy, seed=0, latent_noise=0.2)({"pixels": pixels}, 0)
    latents = signed_pixels(pixels)
    levels = (spy.decoded[0] - latents).flatten(1).std(1) / latents.flatten(1).std(1)
    assert levels.min() < 0.01
    assert 0.18 < levels.max() < 0.22
    for half in levels.split(128):
        assert half.mean().item() == pytest.approx(0.1, abs=0.015)  # uniform from 0 to 0.2, over 128 pictures
    noise = (spy.decoded[0] - latents).flatten(1)
    assert noise.mean(1).abs().max() < 0.05
    AutoencoderTask(spy, seed=0)({"pixels": pixels}, 0)
    assert torch.equal(spy.decoded[1], latents)


def test_two_ranks_add_the_latent_noise_that_one_process_adds(pipe):
    pixels = torch.randint(0, 256, (4, 3, 16, 8), dtype=torch.uint8)
    whole = AutoencoderTask(pipe.vae, seed=0, latent_noise=0.5)({"pixels": pixels}, 3)["reconstruction"]
    halves = [
        AutoencoderTask(pipe.vae, seed=0, latent_noise=0.5, rank=rank, world_size=2)({"pixels": part}, 3)
        for rank, part in enumerate(pixels.split(2))
    ]
    torch.testing.assert_close(whole, sum(half["reconstruction"] for half in halves) / 2)
    without = AutoencoderTask(pipe.vae, seed=0)({"pixels": pixels}, 3)["reconstruction"]
    assert whole != without


def test_psnr_follows_its_definition():
    first = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    second = first + torch.tensor([1, 51], dtype=torch.uint8)[:, None, None, None]
    torch.testing.assert_close(psnr(first, second), torch.tensor([48.1308, 13.9794]), rtol=0, atol=1e-3)
    assert signed_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def batch_of(pipe, **options):
    latents = torch.randn(12, 8, 32, generator=torch.Generator().manual_seed(0))
    return base_batches(
        pipe, latents, torch.zeros(8, 3), ["red hat", "blue hat", "t-shirt"] * 4, batch_size=6, seed=0, **options
    )


def test_two_ranks_take_the_step_that_one_process_takes(pipe):
    whole = TextToImageTask(pipe, seed=0)(batch_of(pipe)(3), 3)["loss"]
    halves = [
        TextToImageTask(pipe, seed=0, rank=rank, world_size=2)(batch_of(pipe, rank=rank, world_size=2)(3), 3)["loss"]
        for rank in (0, 1)
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_a_dropped_caption_is_the_empty_prompt(pipe):
    batch = batch_of(pipe)(0)
    dropped = TextToImageTask(pipe, seed=0, caption_dropout=1.0)(batch, 0)["loss"]
    empty = {**batch, "clip_ids": batch["empty_clip_ids"].expand(6, -1), "t5_ids": batch["empty_t5_ids"].expand(6, -1)}
    assert torch.equal(dropped, TextToImageTask(pipe, seed=0, caption_dropout=0.0)(empty, 0)["loss"])
    assert dropped != TextToImageTask(pipe, seed=0, caption_dropout=0.0)(batch, 0)["loss"]


def test_noise_levels_follow_the_shift_and_fill_the_range(pipe):
    task = TextToImageTask(pipe, seed=0, shift=3.0)
    sigma, _, _ = task._draw(torch.zeros(4096, 1, 1), step=0)
    # P(sigma < s) = u(s), the inverse of the shift: u = s / (3 - 2 s).
    for level in (0.25, 0.5, 0.9):
        assert (sigma < level).float().mean().item() == pytest.approx(level / (3 - 2 * level), abs=2e-3)
    assert sigma.min() > 0
    assert sigma.max() <= 1


def test_training_moves_the_text_encoders_too(pipe):
    before = {name: p.clone() for name, p in pipe.text_encoder_2.named_parameters()}
    fit(TextToImageTask(pipe, seed=0), batch_of(pipe), LoopConfig(steps=2, learning_rate=1e-2), LocalContext())
    assert any(not torch.equal(p, before[name]) for name, p in pipe.text_encoder_2.named_parameters())


def test_the_text_encoders_learn_at_a_fraction_of_the_rate(pipe):
    task = TextToImageTask(pipe, seed=0, text_rate=0.25)
    rate_of = {id(p): group["lr"] for group in task.parameter_groups(1e-2) for p in group["params"]}
    assert len(rate_of) == sum(1 for _ in task.parameters())
    assert {rate_of[id(p)] for p in pipe.transformer.parameters()} == {1e-2}
    assert {rate_of[id(p)] for p in pipe.text_encoder_2.parameters()} == {0.25e-2}


def test_a_word_knows_the_word_before_it_from_the_start():
    pipe = build_tiny_pipeline(TinyConfig(), ("a", "b", "c", "blue", "red", "hat"), seed=0)

    def hat(sentence):
        embeds, _, _ = pipe.encode_prompt([sentence], max_sequence_length=24)
        return embeds[0, sentence.split().index("hat")]

    near = (hat("a b c red hat") - hat("a b c blue hat")).norm()
    far = (hat("red a b c hat") - hat("blue a b c hat")).norm()
    assert near > 3 * far
