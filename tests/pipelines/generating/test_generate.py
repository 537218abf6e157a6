"""`python -m pipelines generate` on a small real FluxPipeline: what it writes, refuses, resumes; here and under Ray."""

import hashlib
import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from processes import clean_environment, wait_until
from workspaces import COMMAND_LINE, forked, output_of_new

from components.taca.generation import Adapter, Arm, apply_arm, generate
from components.taca.lora import add_lora, save_lora
from components.taca.reference import load_base, write_reference
from components.taca.schedule import TemperatureSchedule
from components.taca.source_pictures import SourcePicture, from_pictures
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline
from components.training.randomness import stream_seed
from pipelines import presets
from pipelines.__main__ import main
from pipelines.engine.forked import WARM, ForkedProcess
from pipelines.generating import generation, painter
from pipelines.identity.closure import ROOT
from pipelines.scratch.folder import Scratch

SMALL = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1, text_tokens=6)
PROMPTS = ["red hat", "blue hat", "red", "hat red blue", "blue"]
MANY = PROMPTS * 30
"""Enough to be stopped in the middle."""
PICTURE = {"height": 16, "width": 8, "steps": 3}


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """An untrained model whose pictures differ from prompt to prompt, and its reference."""
    pipe = build_tiny_pipeline(SMALL, ("red", "blue", "hat"), seed=0)
    with torch.no_grad():  # FLUX starts with a silent output layer, and would draw the noise alone
        for parameter in pipe.transformer.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.add_(0.2 * noise)
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder / "base")
    write_reference(folder / "base", folder / "base.json")
    return folder / "base.json"


class Studio:
    """A workspace, a file of prompts, and the command."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        self.output = root / "out"
        shutil.copy(ROOT / "params.yaml", root / "params.yaml")
        self.prompts = root / "prompts.txt"
        self.prompts.write_text("\n".join(PROMPTS))

    def arguments(self, **options: object) -> list[str]:
        chosen = {
            "output": self.output,
            "model": self.model,
            "shard_size": 2,
            "batch": 2,
            "threads": 1,
            "device": "cpu",
        }
        chosen |= {"workers": 0, **PICTURE, **options}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
        return ["--workspace", str(self.root), "generate", str(self.prompts), *flags]

    def run(self, **options: object) -> int:
        return main(self.arguments(**options))

    def fork(self, warm_address: str, **options: object) -> ForkedProcess:
        """The command in a process of its own."""
        return forked(COMMAND_LINE, *self.arguments(**options), **clean_environment(**{WARM: warm_address}))

    def shards(self) -> list[Path]:
        return sorted((self.output / "shards").glob("*.parquet"))

    def rows(self) -> list[dict]:
        return [row for shard in self.shards() for row in pq.read_table(shard).to_pylist()]

    def manifest(self) -> dict:
        return json.loads((self.output / "manifest.json").read_text())

    def files(self) -> dict[str, str]:
        """SHA-256 of everything in the folder, by path."""
        found = (path for path in self.output.rglob("*") if path.is_file())
        return {str(p.relative_to(self.output)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.fixture
def make_studio(tmp_path, model):
    def make(name: str = "studio") -> Studio:
        (tmp_path / name).mkdir()
        return Studio(tmp_path / name, model)

    return make


@pytest.fixture
def studio(make_studio) -> Studio:
    return make_studio()


def one_line(capsys) -> str:
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ")
    assert "\n" not in told
    return told


def pixels(image: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1)


def test_shards_hold_the_pictures_of_their_prompts_and_seeds(studio):
    assert studio.run(seed=7, images_per_prompt=2, shard_size=4, batch=3) == 0
    rows = studio.rows()
    expected = [(str(line), text, index) for line, text in enumerate(PROMPTS, 1) for index in (0, 1)]
    assert [(row["prompt_id"], row["prompt"], row["index"]) for row in rows] == expected
    assert [row["image_id"] for row in rows] == list(range(10))
    assert [row["seed"] for row in rows] == [stream_seed(7, "picture", line, index) for line, _, index in expected]
    pipe = load_base(studio.model)
    for shard in (rows[:4], rows[4:8], rows[8:]):
        asked = [row["prompt"] for row in shard], [row["seed"] for row in shard]
        drawn = generate(pipe, *asked, batch_size=3, **PICTURE)
        assert torch.equal(torch.stack([pixels(row["image"]) for row in shard]), drawn)
    assert len({row["image"] for row in rows}) == 10


def test_the_manifest_tells_every_shard_and_what_decided_it(studio):
    assert studio.run() == 0
    manifest = studio.manifest()
    assert manifest["pictures"] == 5
    assert {row["file"]: row["sha256"] for row in manifest["shards"]} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in studio.shards()
    }
    assert [row["pictures"] for row in manifest["shards"]] == [2, 2, 1]
    settings = manifest["settings"]
    assert settings == json.loads((studio.output / "settings.json").read_text())
    assert {key: settings[key] for key in PICTURE} == PICTURE
    assert settings["taca"] is None
    assert set(studio.files()) == {
        *(f"shards/{number:05d}.parquet" for number in range(3)),
        "lock",
        "manifest.json",
        "settings.json",
        "skipped.json",
    }


def test_sizes_and_seed_that_are_not_given_are_those_of_params_yaml(studio):
    flags = [flag for flag in studio.arguments() if not flag.startswith(("--height", "--width", "--steps"))]
    text = (studio.root / "params.yaml").read_text()
    for before, after in (("height: 64", "height: 48"), ("width: 32", "width: 16"), ("seed: 0", "seed: 5")):
        assert before in text
        text = text.replace(before, after)
    (studio.root / "params.yaml").write_text(text)
    assert main([*flags, "--steps=2"]) == 0
    assert studio.rows()[0]["seed"] == stream_seed(5, "picture", "1", 0)
    assert pixels(studio.rows()[0]["image"]).shape == (3, 48, 16)


def test_a_manifests_own_seed_gives_the_picture_that_it_gave_elsewhere(make_studio):
    first, second = make_studio("first"), make_studio("second")
    assert first.run(batch=1) == 0
    kept = first.rows()[3]
    second.prompts = second.root / "prompts.jsonl"
    second.prompts.write_text(json.dumps({"prompt": kept["prompt"], "seed": kept["seed"], "prompt_id": "again"}))
    assert second.run(batch=1) == 0
    (again,) = second.rows()
    assert (again["prompt_id"], again["seed"], again["image"]) == ("again", kept["seed"], kept["image"])


def test_bad_prompts_are_listed_and_the_rest_is_drawn(studio, capsys):
    studio.prompts.write_bytes(b"red hat\n\nblue \xff\nblue hat")
    assert studio.run() == 0
    assert [(row["prompt_id"], row["prompt"]) for row in studio.rows()] == [("1", "red hat"), ("4", "blue hat")]
    skipped = json.loads((studio.output / "skipped.json").read_text())
    assert [(one["line"], one["reason"]) for one in skipped] == [(2, "prompt is empty"), (3, "prompt is not UTF-8")]
    assert "2 bad prompts skipped" in capsys.readouterr().err


def test_without_a_good_prompt_nothing_is_made(studio, capsys):
    studio.prompts.write_text("\n\n")
    assert studio.run() == 3
    assert "line 1: prompt is empty" in one_line(capsys)
    assert not studio.output.exists()


def test_taca_and_the_adapter_are_on_as_asked(make_studio, model):
    pipe = load_base(model)
    add_lora(pipe.transformer, rank=2, seed=0)
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    adapter = model.parent / "adapter"
    save_lora(pipe.transformer, adapter, {"threshold": 0.8})
    schedule = TemperatureSchedule(gamma=3.0, threshold=0.8)
    arms = {
        "taca": ({"gamma": 3, "threshold": 0.8}, Arm(None, schedule)),
        "lora": ({"adapter": adapter}, Arm(adapter)),
        "both": ({"adapter": adapter, "gamma": 3, "threshold": 0.8}, Arm(adapter, schedule)),
    }
    seen = set()
    for name, (options, arm) in arms.items():
        studio = make_studio(name)
        assert studio.run(**options) == 0
        rows = studio.rows()[:2]
        with apply_arm(load_base(model), arm) as fresh:
            drawn = generate(fresh, PROMPTS[:2], [row["seed"] for row in rows], batch_size=2, **PICTURE)
        assert torch.equal(torch.stack([pixels(row["image"]) for row in rows]), drawn), name
        seen.add(rows[0]["image"])
    base, neutral = make_studio("base"), make_studio("neutral")
    assert base.run() == neutral.run(gamma=1) == 0
    assert [row["image"] for row in base.rows()] == [row["image"] for row in neutral.rows()]
    assert len(seen | {base.rows()[0]["image"]}) == 4


def test_adapters_are_given_again_and_again_with_weights_and_thresholds(make_studio, model, capsys):
    from safetensors.torch import save_file

    layer = "transformer.transformer_blocks.0.attn.to_q"
    down, up = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), torch.full((32, 2), 3.0)
    style = model.parent / "style:2.safetensors"  # a colon may belong to the path
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, style)
    trained = model.parent / "trained.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps({"taca.threshold": 0.8, "taca.gamma": 1.0})}
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": -up}, trained, metadata)

    def draw(name, adapters, *thresholds):
        studio = make_studio(name)
        flags = [f"--adapter={adapter}" for adapter in adapters] + [f"--adapter-threshold={t}" for t in thresholds]
        code = main([*studio.arguments(), *flags])
        return code, [row["image"] for row in studio.rows()] if code == 0 else capsys.readouterr().err

    base = draw("base", [])[1]
    both = draw("both", [f"{style}:0.5", trained])[1]
    printed = capsys.readouterr().out
    assert "style:2.safetensors is on with weight 0.5 at 3 of 3 steps" in printed
    assert "trained.safetensors is on at 2 of 3 steps" in printed  # sigma 1, .857, .6 at shift 3
    assert draw("opposite", [style, trained], 0)[1] == base  # they cancel out where both are on
    assert draw("again", [f"{style}:0.5", trained], 0, 0.8)[1] == both != base
    code, error = draw("three", [style, trained], 0, 0, 0)
    assert code == 2
    assert "given 3 times for 2 adapters" in error
    code, error = draw("missing", [style, "nowhere:0.5"])
    assert code == 3
    assert "nowhere: no adapter there" in error
    settings = make_studio("recorded")
    assert main([*settings.arguments(), f"--adapter={style}:0.5"]) == 0
    assert [a["weight"] for a in settings.manifest()["settings"]["adapters"]] == [0.5]
    assert str(model.parent) not in json.dumps(settings.manifest())


def write_lora(model: Path, name: str, seed: int) -> Path:
    """A LoRA of random weights over one layer."""
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(seed)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    pair = {f"{layer}.lora_A.weight": (2, 32), f"{layer}.lora_B.weight": (32, 2)}
    save_file({key: torch.randn(shape, generator=source) for key, shape in pair.items()}, model.parent / name)
    return model.parent / name


def test_loras_take_turns_over_a_model_that_is_read_once(make_studio, model, monkeypatch, capsys):
    loras = [write_lora(model, f"style-{number}.safetensors", number) for number in range(2)]
    turns = [str(loras[0]), f"{loras[1]}:0.5", f"{loras[0]}:0.5"]
    loaded = []
    monkeypatch.setattr(painter, "load_base", lambda *args, **kw: loaded.append(args) or load_base(*args, **kw))
    studio = make_studio("turns")
    flags = [f"--each-adapter={turn}" for turn in turns]
    assert main([*studio.arguments(naming="compbench"), *flags]) == 0
    assert len(loaded) == 1
    rows, labels = studio.rows(), ["style-0.safetensors", "style-1.safetensors:0.5", "style-0.safetensors:0.5"]
    assert [row["adapter"] for row in rows] == [label for label in labels for _ in PROMPTS]
    assert [row["image_id"] for row in rows] == list(range(15))
    assert [row["seed"] for row in rows] == [row["seed"] for row in rows[:5]] * 3  # the same noise
    printed = capsys.readouterr().out
    for number, (turn, label) in enumerate(zip(turns, labels, strict=True)):
        alone = make_studio(f"alone-{number}")
        assert main([*alone.arguments(), f"--adapter={turn}"]) == 0
        mine = [row["image"] for row in rows if row["adapter"] == label]
        assert [row["image"] for row in alone.rows()] == mine
        assert f"{label} is on at 3 of 3 steps" in printed
        names = sorted((studio.output / "samples" / label).iterdir(), key=lambda path: path.name.split("_")[-1])
        assert [path.read_bytes() for path in names] == mine
    assert len({row["image"] for row in rows}) == 15
    assert [row["adapter"] for row in studio.manifest()["shards"]][::3] == labels
    # One shard is drawn again after its LoRA alone is put in place.
    files, victim = studio.files(), studio.shards()[4]
    victim.unlink()
    assert main([*studio.arguments(naming="compbench"), *flags]) == 0
    assert studio.files() == files
    assert main([*make_studio("twice").arguments(), flags[0], flags[0]]) == 2
    assert "is given twice" in one_line(capsys)


def test_loras_with_one_file_name_are_told_apart_by_their_folders():
    paths = [Path("/runs/a/10/w.safetensors"), Path("/runs/a/20/w.safetensors"), Path("/runs/b/20/w.safetensors")]
    assert generation.labels([Adapter(path) for path in paths[:2]]) == ["10/w.safetensors", "20/w.safetensors"]
    assert generation.labels([Adapter(path) for path in paths])[2] == "b/20/w.safetensors"
    assert generation.labels([]) == []


def test_prompts_are_drawn_from_the_pictures_of_a_manifest(make_studio, model, capsys):
    studio = make_studio()
    (studio.root / "art").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (20, 30), colour).save(studio.root / "art" / f"{name}.png")
    rows = [
        {"prompt": "red hat", "image": "art/a.png", "negative_prompt": "blue"},
        {"prompt": "blue hat", "image": "art/b.png"},
        {"prompt": "red", "image": "art/gone.png"},
        {"prompt": "blue"},
    ]
    studio.prompts = studio.root / "prompts.jsonl"
    studio.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"strength": 0.5, "guidance": 2, "steps": 4, "negative_prompt": "hat"}
    assert studio.run(**options, gamma=2, threshold=0.8) == 0
    out, err = capsys.readouterr()
    assert "TACA is on at 0 of 2 steps: raise --strength" in out  # at shift 3 the last two of four are at .75 and .5
    assert "2 bad prompts skipped" in err
    skipped = json.loads((studio.output / "skipped.json").read_text())
    assert [(one["line"], one["reason"]) for one in skipped] == [
        (3, "image art/gone.png: missing file (no such file in the folder)"),
        (4, "image is missing"),
    ]
    pipe = from_pictures(load_base(model), masks=False)
    drawn = generate(
        pipe,
        ["red hat", "blue hat"],
        [row["seed"] for row in studio.rows()],
        height=16,
        width=8,
        steps=4,
        guidance=2.0,
        negative_prompts=["blue", "hat"],
        sources=[SourcePicture(Image.open(studio.root / "art" / f"{name}.png")) for name in "ab"],
        strength=0.5,
    )
    assert all(torch.equal(pixels(row["image"]), picture) for row, picture in zip(studio.rows(), drawn, strict=True))
    Image.new("RGB", (20, 30), "green").save(studio.root / "art" / "a.png")
    assert studio.run(**options, gamma=2, threshold=0.8) == 2
    assert "was made with other prompts" in one_line(capsys)  # of the pictures the contents count


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"offload": "group"}, 2, "offload group: nothing to move weights from"),
        ({"quantize": "int8"}, 2, "quantize int8: computes in bfloat16 only, not in float32; set dtype bf16"),
        ({"quantize": "nf4", "dtype": "bf16"}, 2, "needs the package bitsandbytes"),
        ({"gguf": "nowhere.gguf"}, 3, "nowhere.gguf: cannot be read (No such file or directory)"),
        ({"negative_prompt": "hat"}, 2, "a negative prompt has no effect at guidance 1"),
        ({"strength": 0.5}, 2, "give a manifest with the column `image`"),
        ({"each_adapter": "nowhere"}, 3, "nowhere: no adapter there"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_makes_no_folder(studio, capsys, options, code, message):
    assert studio.run(**options) == code
    assert message in one_line(capsys)
    assert not studio.output.exists()


@pytest.mark.heavy
def test_the_weights_may_be_quantised(make_studio, model, capsys):
    plain, packed = make_studio("plain"), make_studio("packed")
    assert plain.run(dtype="bf16") == 0
    assert packed.run(dtype="bf16", quantize="int8") == 0
    assert packed.manifest()["settings"]["quantize"] == "int8"
    pairs = zip(plain.rows(), packed.rows(), strict=True)
    near = [(pixels(a["image"]).int() - pixels(b["image"]).int()).abs().float().mean() for a, b in pairs]
    assert 0 < sum(near) / 5 < 25
    capsys.readouterr()
    assert packed.run(dtype="bf16") == 2
    assert 'was made with quantize "int8", now it is "none"' in one_line(capsys)


def test_the_rest_of_the_schedule_is_that_of_params_yaml(studio, capsys):
    presets.edit(studio.root / "params.yaml", {"taca": {"form": "constant", "streams": ["single"]}})
    assert studio.run(gamma=2) == 0
    taca = studio.manifest()["settings"]["taca"]
    assert (taca["gamma"], taca["form"], taca["streams"]) == (2.0, "constant", ["single"])
    assert "TACA is on at 3 of 3 steps" in capsys.readouterr().out


def test_a_folder_whose_command_was_killed_before_its_first_line_is_ours(studio):
    with Scratch(studio.output).lock():
        lease = (studio.output / "lease.json").read_text()
    (studio.output / "lease.json").write_text(lease)
    assert studio.run() == 0


def test_a_threshold_may_be_a_rule_that_follows_the_model(make_studio, capsys):
    by_rule, by_sigma = make_studio("rule"), make_studio("sigma")
    text = (by_rule.root / "params.yaml").read_text()
    # One of three steps; shift 3 puts them at sigma 1, 6/7, 3/5.
    (by_rule.root / "params.yaml").write_text(text.replace("  threshold: 0.8 ", "  threshold: {fraction: 0.33} "))
    assert by_rule.run(gamma=2) == by_sigma.run(gamma=2, threshold=0.9) == 0
    assert "TACA is on at 1 of 3 steps" in capsys.readouterr().out
    assert [row["image"] for row in by_rule.rows()] == [row["image"] for row in by_sigma.rows()]


def test_progress_is_a_line_a_shard_where_there_is_no_terminal(studio, capsys):
    assert studio.run(gamma=2, threshold=0.8) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "TACA is on at 2 of 3 steps"  # shift 3 on three steps: sigma 1, 6/7, 3/5
    assert [line.split(",")[0] for line in told[1:4]] == [
        "00000.parquet: 2 of 5 pictures",
        "00001.parquet: 4 of 5 pictures",
        "00002.parquet: 5 of 5 pictures",
    ]


def test_running_again_draws_nothing(studio, capsys):
    assert studio.run() == 0
    before = {path: path.stat().st_mtime_ns for path in studio.shards()}
    files = studio.files()
    capsys.readouterr()
    assert studio.run() == 0
    assert "5 pictures in 3 shards, 0 of them drawn now" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in studio.shards()} == before
    assert studio.files() == files


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_shard_is_drawn_again_and_no_other(studio, damage):
    assert studio.run() == 0
    files = studio.files()
    victim, *others = studio.shards()[1], studio.shards()[0], studio.shards()[2]
    content = victim.read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        victim.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        victim.write_bytes(flipped if damage == "flipped" else content[:middle])
    before = {path: path.stat().st_mtime_ns for path in others}
    assert studio.run() == 0
    assert studio.files() == files
    assert {path: path.stat().st_mtime_ns for path in others} == before


def test_a_worker_that_dies_while_it_writes_leaves_nothing_in_the_folder(studio, make_studio, monkeypatch):
    undisturbed = make_studio("undisturbed")
    assert undisturbed.run() == 0
    half, long = f".00001.parquet.{os.getpid()}.tmp", "." + "x" * 200 + ".0123.tmp"

    def draw_after_a_death(drawing, shards, *rest):
        (shards / half).write_bytes(b"half")
        (shards / long).write_bytes(b"half")
        return draw(drawing, shards, *rest)

    draw = generation.draw
    monkeypatch.setattr(generation, "draw", draw_after_a_death)
    assert studio.run() == 0
    assert studio.files() == undisturbed.files()


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """The pictures of MANY. Look, do not touch."""
    studio = Studio(tmp_path_factory.mktemp("undisturbed"), model)
    studio.prompts.write_text("\n".join(MANY))
    assert studio.run() == 0
    return studio


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.heavy)])
@pytest.mark.slow
def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(make_studio, undisturbed, warm_address, how):
    stopped = make_studio("stopped")
    stopped.prompts.write_text("\n".join(MANY))
    process = stopped.fork(warm_address)
    wait_until(lambda: len(stopped.shards()) >= 3, process, pause=0.005)
    os.kill(process.pid, how)
    assert process.wait(60) == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    survived = {path: path.stat().st_mtime_ns for path in stopped.shards()}
    assert 3 <= len(survived) < 75
    assert not (stopped.output / "manifest.json").exists()
    # The last one may have appeared after the last line was written; it is drawn again.
    recorded = (stopped.output / "finished.jsonl").read_text().count("\n")
    assert recorded >= len(survived) - 1
    (stopped.output / "shards" / ".00070.parquet.somewhere.1.tmp").write_bytes(b"half")
    with open(stopped.output / "finished.jsonl", "a") as file:
        file.write('{"file": "000')  # a kill in the middle of a line
    assert stopped.run() == 0
    assert sum(path.stat().st_mtime_ns == at for path, at in survived.items()) == recorded
    assert stopped.files() == undisturbed.files()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 4),
        ("gamma", 1.2),
        ("seed", 1),
        ("batch", 1),
        ("shard_size", 3),
        ("images_per_prompt", 2),
        ("threads", 2),
        ("guidance", 2.0),
        ("dtype", "bf16"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(studio, capsys, option, value):
    assert studio.run() == 0
    files = studio.files()
    capsys.readouterr()
    assert studio.run(**{option: value}) == 2
    told = one_line(capsys)
    assert "was made with" in told
    assert "choose another --output" in told
    assert studio.files() == files


def test_other_prompts_or_another_model_in_the_same_folder_are_refused(studio, capsys, tmp_path):
    assert studio.run() == 0
    studio.prompts.write_text("\n".join([*PROMPTS, "one more"]))
    capsys.readouterr()
    assert studio.run() == 2
    assert "was made with other prompts" in one_line(capsys)
    studio.prompts.write_text("\n".join(PROMPTS) + "\n")  # the same prompts: not the file counts
    assert studio.run() == 0
    shutil.copytree(studio.model.parent / "base", tmp_path / "other")
    with open(tmp_path / "other" / "scheduler" / "scheduler_config.json", "a") as file:
        file.write("\n")
    write_reference(tmp_path / "other", tmp_path / "other.json")
    capsys.readouterr()
    assert studio.run(model=tmp_path / "other.json") == 2
    assert "was made with other model; choose another" in one_line(capsys)


def test_settings_that_drew_nothing_do_not_bind_the_folder(studio, capsys):
    assert studio.run(height=18) == 2
    assert "multiples of 4" in one_line(capsys)
    assert studio.run() == 0
    assert studio.manifest()["settings"]["height"] == 16


@pytest.mark.parametrize("theirs", ["notes.txt", "shards/00000.parquet", "settings.json"])
def test_a_folder_with_other_things_is_refused_and_left_alone(studio, capsys, theirs):
    (studio.output / theirs).parent.mkdir(parents=True)
    (studio.output / theirs).write_text("{}")
    assert studio.run() == 2
    assert "is not of a generation" in one_line(capsys)
    assert [str(p.relative_to(studio.output)) for p in studio.output.rglob("*") if p.is_file()] == [theirs]


@pytest.mark.parametrize("link", ["shards", "samples"])
def test_nothing_is_written_through_a_link_to_another_place(studio, capsys, tmp_path, link):
    assert studio.run(naming="compbench") == 0
    shutil.move(studio.output / link, tmp_path / "elsewhere")
    (studio.output / link).symlink_to(tmp_path / "elsewhere")
    for file in (tmp_path / "elsewhere").iterdir():
        file.unlink()
    capsys.readouterr()
    assert studio.run(naming="compbench") == 2
    assert "is a symbolic link" in one_line(capsys)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"threshold": 0.8}, 2, "give both"),
        ({"adapter_threshold": 0.8}, 2, "1 times for 0 adapters"),
        ({"gamma": 0}, 2, "gamma"),
        ({"model": "nowhere.json"}, 3, "no model reference there"),
        ({"adapter": "nowhere"}, 3, "no adapter there"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_folder(studio, capsys, options, code, message):
    assert studio.run(**options) == code
    assert message in one_line(capsys)
    assert not studio.output.exists()


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"threshold": 1.5}, {"workers": -1}, {"guidance": 0.5}, {"batch": "x"}, {"adapter": "x:nan"}],
)
def test_an_option_out_of_range_is_a_parameter_error(studio, capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        studio.run(**wrong)
    assert caught.value.code == 2
    assert f"--{next(iter(wrong))}" in capsys.readouterr().err


def test_samples_are_named_as_the_published_scripts_read_them(studio, capsys):
    studio.prompts.write_text("\n".join([*PROMPTS[:2], "red and/or blue", "snake_case hat"]))
    assert studio.run(images_per_prompt=2, naming="compbench") == 0
    samples = studio.output / "samples"
    names = sorted((path.name for path in samples.iterdir()), key=lambda name: int(name.split("_")[-1].split(".")[0]))
    told = [name.split("_")[0] for name in names]  # as BLIPvqa_eval/BLIP_vqa.py reads the prompt
    assert told == [t for t in (*PROMPTS[:2], "red and or blue", "snake") for _ in range(2)]
    assert names[0] == "red hat_000000.png"
    assert [(samples / name).read_bytes() for name in names] == [row["image"] for row in studio.rows()]
    renamed = json.loads((studio.output / "samples.json").read_text())
    assert [(one["file"], one["prompt"]) for one in renamed] == [
        ("red and or blue_000004.png", "red and/or blue"),
        ("red and or blue_000005.png", "red and/or blue"),
        ("snake_case hat_000006.png", "snake_case hat"),
        ("snake_case hat_000007.png", "snake_case hat"),
    ]
    assert "4 file names do not give their prompt" in capsys.readouterr().err


def test_samples_can_be_had_later_and_damaged_ones_come_back(studio, capsys):
    assert studio.run() == 0
    assert not (studio.output / "samples").exists()
    assert studio.run(naming="compbench") == 0
    files = studio.files()
    (studio.output / "samples" / "red hat_000000.png").write_bytes(b"half")
    capsys.readouterr()
    assert studio.run(naming="compbench") == 0
    assert "1 of 5 pictures written now" in capsys.readouterr().out
    assert studio.files() == files


# In a process of its own, so that a Ray that hangs can be ended from outside. One Ray for all runs.
UNDER_RAY = """
import json, os, signal, sys, threading, time
from pathlib import Path

import psutil

from pipelines import presets
from pipelines.__main__ import main
from pipelines.engine.ray_cluster import set_ray_defaults, start_ray
from pipelines.errors import InfrastructureError
from pipelines.generating.plan import Prompt, plan
from pipelines.generating.pool import draw_with_ray
from pipelines.schema.running import Compute

set_ray_defaults()
two = json.loads(sys.argv[1])
start_ray(Compute(workers=2, threads=1))

def kill_one_that_draws():
    output = Path(next(flag for flag in two if flag.startswith("--output=")).removeprefix("--output="))
    while not list(output.glob("shards/*.parquet")):
        time.sleep(0.01)
    while not (drawing := [p for p in psutil.Process().children(recursive=True) if "Painter.draw" in p.cmdline()[0]]):
        pass
    drawing[0].kill()
    print("killed", drawing[0].pid, flush=True)

killer = threading.Thread(target=kill_one_that_draws)
killer.start()
assert main(two) == 0
killer.join()

class Doomed:
    def ready(self):
        pass

    def draw(self, shard):
        os.kill(os.getpid(), signal.SIGKILL)

class Mistaken(Doomed):
    def draw(self, shard):
        raise KeyError("a bug")

shards = plan([Prompt("1", "a")], 0, 2, 1)
try:
    list(draw_with_ray(Doomed, (), shards, Compute(workers=1, threads=1, device="cpu", max_failures=1)))
except InfrastructureError as error:
    assert str(error).startswith("2 workers died"), error
    print("gave up", flush=True)
try:
    list(draw_with_ray(Mistaken, (), shards, Compute(workers=1, threads=1, device="cpu", max_failures=1)))
except KeyError as error:
    print("passed on", error, flush=True)
"""


@pytest.mark.ray
@pytest.mark.heavy
def test_two_workers_or_none_give_the_same_bytes_and_a_worker_that_dies_is_replaced(make_studio):
    none, two = make_studio("none"), make_studio("two")
    for studio in (none, two):
        studio.prompts.write_text("\n".join(PROMPTS * 8))
    options = {"gamma": 2, "threshold": 0.8, "steps": 12}  # long enough to be killed in the middle
    assert none.run(**options) == 0
    command = two.arguments(**options, workers=2, max_failures=1)
    ended, told = output_of_new(UNDER_RAY, json.dumps(command), **clean_environment())
    assert ended == 0, told[-3000:]
    assert none.files() == two.files()
    assert "killed" in told
    assert "a worker died (1 of at most 1)" in told
    assert "gave up" in told
    assert "passed on 'a bug'" in told
