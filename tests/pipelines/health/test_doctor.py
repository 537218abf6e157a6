"""The doctor: what is there, what is not, and the exit code that says whether a run could begin."""

import contextlib
import hashlib
import json
import shutil

import pytest
from PIL import Image

from components.errors import DataError
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.published import weights_digest
from components.gadms.tasks import RetrievalTask
from components.persons.published.readers import find_dataset
from components.persons.published.validation import ValidatedRecords
from pipelines import presets
from pipelines.__main__ import main
from pipelines.health import doctor
from pipelines.health.doctor import check_data
from pipelines.health.findings import Finding, State
from pipelines.health.weights import check_weights
from pipelines.identity.closure import ROOT
from pipelines.presets import resolve
from pipelines.workspace import Workspace

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """params.yaml, presets and checkpoints of this checkout, no data, and an empty Hugging Face cache."""
    root = tmp_path / "checkout"
    (root / "data/raw").mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    shutil.copytree(ROOT / "presets", root / "presets")
    (root / "pretraining").symlink_to(ROOT / "pretraining")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "300")
    return Workspace(root, root / ".runs")


def ask(workspace, capsys, *options, **values):
    """The doctor's exit code, its output and its complaint, with `values` (nested) written into params.yaml."""
    presets.edit(workspace.root / "params.yaml", values)
    before = sorted(workspace.root.rglob("*"))
    code = main(["--workspace", str(workspace.root), "doctor", *options])
    assert sorted(workspace.root.rglob("*")) == before  # it only looks
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def cuhk(workspace, names, *, pictures=True):
    folder = workspace.root / "data/raw/CUHK-PEDES"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, name in enumerate(names):
        path = folder / "imgs" / name
        if pictures:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16), (i, 0, 0)).save(path, "PNG")
        entries.append({"id": i + 1, "file_path": name, "captions": ["A man."] * 2, "split": "train"})
    (folder / "reid_raw.json").write_text(json.dumps(entries))


def of(findings, subject):
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def test_the_default_needs_nothing_and_every_published_set_is_listed_with_how_to_get_it(workspace, capsys):
    code, out, err = ask(workspace, capsys)
    assert (code, err) == (0, "")
    assert "Everything that params.yaml asks for is there." in out
    findings = check_data(resolve(workspace.root, None), workspace)
    missing = [found for found in findings if found.state is State.MISSING]
    assert len(missing) == 8
    for found in missing:
        assert not found.asked_for
        assert found.facts.removeprefix("expected in ") in out
        assert "http" in found.remarks[0] or "hf download" in found.remarks[0]
        assert found.remarks[0] in out


def test_a_set_that_is_asked_for_and_not_there_is_exit_code_3_in_one_line(workspace, capsys):
    code, out, err = ask(workspace, capsys, prepare={"source": "icfg-pedes"})
    assert code == 3
    assert err.count("\n") == 1
    assert "not there or not whole: icfg-pedes" in err
    assert "icfg-pedes (asked for)" in out


def test_counts_are_compared_with_the_published_ones(workspace, capsys):
    cuhk(workspace, [f"cam_a/{i}.png" for i in range(3)])
    code, out, _ = ask(workspace, capsys, prepare={"source": "cuhk-pedes"})
    assert code == 0  # a part of the set can be trained on
    assert "there, but differs" in out
    assert "train 3 pictures, 6 captions, 3 identities" in out
    assert "cuhk-pedes: train: 3 images, published 34,054" in out
    assert "cuhk-pedes: test: 0 identities, published 1,000" in out


def test_missing_pictures_are_named_by_folder_and_count_as_not_there(workspace, capsys):
    cuhk(workspace, [f"cam_a/{i}.png" for i in range(3)] + ["Market/x.png", "Market/y.png"])
    shutil.rmtree(workspace.root / "data/raw/CUHK-PEDES/imgs/Market")
    code, out, err = ask(workspace, capsys, "--data", prepare={"source": "cuhk-pedes", "max_bad_fraction": 0.1})
    assert code == 3
    assert "2 pictures are not in data/raw/CUHK-PEDES: imgs/Market 2; such as imgs/Market/x.png" in out
    assert "cuhk-pedes" in err
    # As many as prepare would leave out are no reason to stop.
    assert ask(workspace, capsys, "--data", prepare={"max_bad_fraction": 0.4})[0] == 0


def test_the_doctor_refuses_the_records_that_prepare_refuses_and_prints_any_path(workspace, capsys):
    cuhk(workspace, [f"cam_a/{i}.png" for i in range(4)])
    path = workspace.root / "data/raw/CUHK-PEDES/reid_raw.json"
    entries = json.loads(path.read_text())
    entries[0] |= {"split": "training"}
    entries[1] |= {"captions": ["A man.", None]}
    entries[2] |= {"file_path": "cam_a/half \udcff.png"}
    path.write_text(json.dumps(entries))
    for allowed, code in ((0.7, 3), (0.75, 0)):
        found, out, _ = ask(workspace, capsys, "--data", prepare={"source": "cuhk-pedes", "max_bad_fraction": allowed})
        assert found == code
        with contextlib.nullcontext() if code == 0 else pytest.raises(DataError, match="3 of 4 records are bad"):
            list(ValidatedRecords(find_dataset(path.parent), max_bad_fraction=allowed))
    assert r"such as imgs/cam_a/half \udcff.png (no " in out
    assert "1 captions are empty or no text" in out


def test_an_annotation_file_that_cannot_be_read_is_said_so(workspace, capsys):
    cuhk(workspace, ["a.png"])
    (workspace.root / "data/raw/CUHK-PEDES/reid_raw.json").write_text("{")
    code, out, _ = ask(workspace, capsys, prepare={"source": "cuhk-pedes"})
    assert code == 3
    assert "cuhk-pedes: data/raw/CUHK-PEDES/reid_raw.json is not readable JSON" in out


def test_a_manifest_is_looked_at_too(workspace, capsys):
    assert ask(workspace, capsys, "--data", prepare={"source": "mine/m.csv"})[0] == 3
    folder = workspace.root / "data/raw/mine"
    folder.mkdir()
    Image.new("RGB", (8, 16)).save(folder / "a.png")
    (folder / "m.csv").write_text("image_path,caption,identity,split\na.png,A man.,1,train\n")
    code, out, _ = ask(workspace, capsys, "--data")
    assert code == 0
    assert "mine/m.csv (asked for)" in out
    assert "train 1 pictures, 1 captions, 1 identities" in out


def snapshot(tmp_path, repository, revision, files):
    """A model in the Hugging Face cache, as the hub's client lays it out."""
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    for name, content in files.items():
        path = folder / "snapshots" / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(revision)


def test_a_published_base_model_is_looked_for_in_the_cache_whole(workspace, capsys, tmp_path):
    asked = {"source": "org/model", "revision": None, "sha256": None}
    code, out, _ = ask(workspace, capsys, "--weights", base_model=asked)
    assert code == 3
    assert "base_model.revision is null: set it to the full commit of org/model" in out
    code, out, _ = ask(workspace, capsys, "--weights", base_model={"revision": COMMIT})
    assert code == 3
    assert f"`hf download org/model --revision {COMMIT}`" in out
    parts = {"scheduler": ["diffusers", "x"], "vae": ["diffusers", "AutoencoderKL"]}
    snapshot(tmp_path, "org/model", COMMIT, {"model_index.json": json.dumps({"_class_name": "FluxPipeline", **parts})})
    chosen = resolve(workspace.root, None)
    assert of(check_weights(chosen, workspace), "base_model.source").state is State.INCOMPLETE
    files = {f"{part}/config.json": "{}" for part in parts}
    snapshot(tmp_path, "org/model", COMMIT, files)
    found = of(check_weights(chosen, workspace), "base_model.source")
    assert (found.state, found.facts) == (State.WHOLE, "org/model: 3 files in the Hugging Face cache")


def test_retrieval_weights_are_a_tag_of_open_clip_or_a_file(workspace, capsys, tmp_path):
    def retrieval(weights, architecture="ViT-B-16-quickgelu", digest=None):
        presets.edit(workspace.root / "params.yaml", {"retrieval": {"architecture": architecture}})
        presets.edit(
            workspace.root / "params.yaml", {"retrieval": {"pretrained": weights, "pretrained_sha256": digest}}
        )
        return of(check_weights(resolve(workspace.root, None), workspace), "retrieval.pretrained")

    found = retrieval("openai")
    assert found.state is State.MISSING
    command = "`hf download timm/vit_base_patch16_clip_224.openai open_clip_model.safetensors`"
    assert found.remarks == (command,)
    code, out, _ = ask(workspace, capsys, "--weights")
    assert (code, command in out) == (3, True)
    snapshot(tmp_path, "timm/vit_base_patch16_clip_224.openai", COMMIT, {"open_clip_model.safetensors": ""})
    assert retrieval("openai").state is State.WHOLE
    unknown = retrieval("openay")
    assert unknown.state is State.MISSING
    assert "tags of ViT-B-16-quickgelu are openai" in unknown.remarks[0]
    snapshot(tmp_path, "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", COMMIT, {"open_clip_model.safetensors": ""})
    pixels = retrieval("laion2b_s32b_b82k", "ViT-L-14")
    assert (pixels.state, len(pixels.remarks)) == (State.INCOMPLETE, 1)
    assert "laion2b_s32b_b82k for ViT-L-14: trained on pixels with mean (0.5, 0.5, 0.5)" in pixels.remarks[0]
    (workspace.root / "weights.pt").write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()
    unpinned = retrieval("weights.pt")
    assert unpinned.state is State.INCOMPLETE
    assert f"pretrained_sha256 is null: set it to {digest}" in unpinned.remarks[0]
    assert retrieval("weights.pt", digest=digest).remarks == (
        f"{workspace.root / 'weights.pt'}: is empty; get it again",
    )
    (workspace.root / "mine").mkdir()
    (workspace.root / "mine/open_clip_model.safetensors").write_bytes(b"")
    assert "open_clip_config.json missing" in retrieval("mine", digest=digest).remarks[0]
    assert "none: open_clip does not know the name" in retrieval("x", "ViT-Q-16").remarks[0]


def test_weights_that_are_there_are_read_and_must_fit_the_parameters(workspace):
    architecture = resolve(workspace.root, None).retrieval.architecture
    task = RetrievalTask(DualEncoder.create(architecture), RetrievalConfig(decoder_depth=1), captions=1)
    task.save(workspace.root / "mine")
    pinned = {"pretrained": "mine", "pretrained_sha256": weights_digest(workspace.root / "mine")}

    def found(**values):
        presets.edit(workspace.root / "params.yaml", {"retrieval": pinned, **values})
        return of(check_weights(resolve(workspace.root, None), workspace), "retrieval.pretrained")

    assert (found().state, found().facts) == (State.WHOLE, "mine, a model folder")
    deeper = {"gadms_pretrain": {"corpus": "none"}, "gadms_finetune": {"method": {"decoder_depth": 3}}}
    assert "decoder_depth = 3: the decoder of the pretrained weights has 1 blocks" in found(**deeper).remarks[0]
    other = found(retrieval={**pinned, "architecture": {"text_cfg": {"layers": 6}}})
    assert other.state is State.INCOMPLETE
    assert "not that of the model folder mine: text_cfg.layers is 6 (the folder's: 2); set" in other.remarks[0]


def test_a_check_that_is_added_runs_with_the_rest_and_one_named_runs_alone(workspace, capsys, monkeypatch):
    asked = Finding("cluster", State.MISSING, True, "no address", ("set RAY_ADDRESS",))
    monkeypatch.setitem(doctor.CHECKS, "weights", lambda chosen, workspace: [asked])
    code, out, err = ask(workspace, capsys)
    assert (code, "cluster: set RAY_ADDRESS" in out, "cluster" in err) == (3, True, True)
    assert ask(workspace, capsys, "--data")[0] == 0


def test_a_preset_is_laid_over_the_parameters(workspace, capsys):
    code, out, err = ask(workspace, capsys, "--preset", "flux-dev")
    assert code == 3
    assert "black-forest-labs/FLUX.1-dev" in out
    assert "preset flux-dev asks for" in err
    assert ask(workspace, capsys, "--preset", "nothing")[0] == 2


def test_the_research_preset_says_what_is_missing_of_data_and_of_both_models(workspace, capsys):
    code, out, err = ask(workspace, capsys, "--data", "--weights", "--preset", "research")
    assert code == 3
    assert "cuhk-pedes, base_model.source, retrieval.pretrained" in err
    assert "base_model.revision is null: set it to the full commit of black-forest-labs/FLUX.1-dev" in out
    assert "`hf download timm/vit_base_patch16_clip_224.openai open_clip_model.safetensors`" in out
