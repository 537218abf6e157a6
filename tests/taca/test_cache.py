import pickle

import pytest
import small_pipelines
import torch

from components.errors import DataError
from components.taca.batches import cache_batches
from components.taca.cache import CachedCaption, LatentCache, write_cache
from components.taca.conventions import encode_captions, encode_pictures, image_positions
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline

SMALL = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1, text_tokens=6)
PIXELS = torch.randint(0, 256, (5, 3, 16, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
# Pictures 10..14; picture 11 has two captions.
ROWS = [
    CachedCaption(10, 0, "red hat"),
    CachedCaption(11, 1, "blue hat"),
    CachedCaption(11, 2, "hat"),
    CachedCaption(14, 3, "red"),
    CachedCaption(12, 4, "blue"),
]


def pictures(image_ids):
    return PIXELS[[image_id - 10 for image_id in image_ids]]


@pytest.fixture(scope="module")
def pipe():
    pipe = build_tiny_pipeline(SMALL, ("red", "blue", "hat"), seed=0)
    pipe.vae.register_to_config(shift_factor=0.25, scaling_factor=3.0)
    return pipe


@pytest.fixture
def cache(pipe, tmp_path):
    write_cache(pipe, tmp_path / "cache", ROWS, pictures, batch_size=2, shard_rows=3)
    return LatentCache.open(tmp_path / "cache")


def test_a_cached_row_is_what_encoding_it_gives(pipe, cache):
    chosen = [3, 2, 0, 4, 1]  # crosses the shards, out of order
    batch = cache.batch(chosen)
    rows = [ROWS[index] for index in chosen]
    encoded = encode_captions(pipe, [row.caption for row in rows])
    torch.testing.assert_close(batch["latents"], encode_pictures(pipe, pictures([row.image_id for row in rows])))
    torch.testing.assert_close(batch["prompt_embeds"], encoded["prompt_embeds"])
    torch.testing.assert_close(batch["pooled"], encoded["pooled"])
    assert cache.rows == tuple(ROWS)
    assert len(cache) == 5


def test_packed_latents_decode_to_the_picture_the_vae_would_decode(pipe):
    mean = pipe.vae.encode(PIXELS.float() / 127.5 - 1).latent_dist.mean
    unpacked = pipe._unpack_latents(encode_pictures(pipe, PIXELS), 16, 8, pipe.vae_scale_factor)
    # As FluxPipeline.__call__ undoes the scaling before it decodes.
    torch.testing.assert_close(unpacked / 3.0 + 0.25, mean, rtol=1e-4, atol=1e-5)


def test_positions_and_the_empty_prompt_are_those_of_the_pipeline(pipe, cache):
    assert torch.equal(image_positions(*cache.grid), pipe._prepare_latent_image_ids(1, 4, 2, "cpu", torch.float32))
    null, empty = cache.null_caption(), encode_captions(pipe, [""])
    assert {name.removeprefix("null_") for name in null} == set(empty)
    for name, tensor in empty.items():
        torch.testing.assert_close(null[f"null_{name}"], tensor[0])


def test_a_batch_trains_a_velocity_task(pipe, cache):
    from components.taca.velocity import VelocityTask

    task = VelocityTask(pipe.transformer, **cache.null_caption(), seed=0)
    assert torch.isfinite(task(cache.batch([0, 1, 2]), 0)["loss"])


def test_writing_again_gives_the_same_bytes(pipe, cache, tmp_path):
    write_cache(pipe, tmp_path / "again", ROWS, pictures, batch_size=2, shard_rows=3)
    names = sorted(file.name for file in cache.folder.iterdir())
    assert names == [
        "empty.safetensors",
        "index.json",
        *(f"{p}-0000{i}.safetensors" for p in ("latents", "text") for i in (0, 1)),
    ]
    for name in names:
        assert (cache.folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_cache_travels_to_a_worker(cache):
    before = cache.batch([0, 4])
    after = pickle.loads(pickle.dumps(cache)).batch([0, 4])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_picture_is_encoded_once_and_progress_counts_all_rows(pipe, tmp_path):
    asked, told = [], []

    def counting(image_ids):
        asked.extend(image_ids)
        return pictures(image_ids)

    write_cache(pipe, tmp_path, ROWS, counting, batch_size=4, progress=lambda done, total: told.append((done, total)))
    assert sorted(asked) == [10, 11, 12, 14]
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_what_cannot_be_cached_or_read_is_refused(pipe, cache, tmp_path):
    with pytest.raises(DataError, match="no captions"):
        write_cache(pipe, tmp_path / "x", [], pictures)
    with pytest.raises(DataError, match="holds a cache already"):
        write_cache(pipe, cache.folder, ROWS, pictures)
    with pytest.raises(DataError, match="multiples of 4"):
        write_cache(pipe, tmp_path / "y", ROWS, lambda ids: torch.zeros(len(ids), 3, 18, 8))
    with pytest.raises(DataError, match="no finished cache"):
        LatentCache.open(tmp_path / "none")
    (cache.folder / "text-00001.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="text-00001"):
        cache.batch([4])


PIPELINES = ("flux", "sd3", "chroma", "qwen", "auraflow")


@pytest.fixture(scope="module", params=PIPELINES)
def small(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return getattr(small_pipelines, f"small_{request.param}_pipeline")(folder / "pipeline")


def test_every_pipelines_cache_holds_what_its_transformer_takes(small, tmp_path):
    write_cache(small, tmp_path, ROWS, pictures, batch_size=2, shard_rows=3)
    cache = LatentCache.open(tmp_path)
    batch, encoded = cache.batch([4, 1, 2]), encode_captions(small, ["blue", "blue hat", "hat"])
    packed = hasattr(small, "_pack_latents")
    assert set(batch) == {"latents", *encoded} | ({"img_ids"} if packed else set())
    torch.testing.assert_close(batch["latents"], encode_pictures(small, pictures([12, 11, 11])))
    assert batch["latents"].shape == ((3, 8, 12) if packed else (3, 3, 8, 4))
    for name, tensor in encoded.items():
        torch.testing.assert_close(batch[name], tensor)
        assert batch[name].dtype == tensor.dtype
    assert cache.tokens == 8


def test_a_picture_of_another_size_has_another_number_of_tokens(pipe, tmp_path):
    write_cache(pipe, tmp_path, ROWS, lambda ids: torch.zeros(len(ids), 3, 24, 16))
    assert LatentCache.open(tmp_path).tokens == 6 * 4


def test_a_bfloat16_pipeline_is_cached_in_bfloat16(tmp_path):
    pipe = small_pipelines.small_sd3_pipeline(tmp_path / "sd3").to(torch.bfloat16)
    write_cache(pipe, tmp_path / "cache", ROWS, pictures)
    assert {tensor.dtype for tensor in LatentCache.open(tmp_path / "cache").batch([0]).values()} == {torch.bfloat16}


def test_every_pipelines_cache_trains_its_transformer(small, tmp_path):
    from components.taca.lora import add_lora
    from components.taca.schedule import TemperatureSchedule
    from components.taca.velocity import VelocityTask

    write_cache(small, tmp_path, ROWS, pictures)
    cache, transformer = LatentCache.open(tmp_path), small.transformer
    add_lora(transformer, rank=2, seed=0)
    schedule = TemperatureSchedule(gamma=1.5, threshold=0.6)
    task = VelocityTask(
        transformer, **cache.null_caption(), seed=0, sigma_low=0.6, caption_dropout=0.3, schedule=schedule
    )
    batches = cache_batches(cache, batch_size=4, seed=0)
    task(batches(0), 0)["loss"].backward()
    moved = [name for name, p in transformer.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved
    assert all("lora_B" in name for name in moved)  # lora_B is 0, so lora_A has no gradient yet
