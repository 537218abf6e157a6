"""params.yaml: what is refused, in which words, and what is allowed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.utils import serialize
from dvc.utils.hydra import apply_overrides

from components.errors import ParameterError
from pipelines import params, presets
from pipelines.__main__ import main
from pipelines.identity.closure import ROOT
from pipelines.schema.reading import parse_yaml, read_yaml, to_yaml
from pipelines.schema.running import Compute
from pipelines.tracking.runs import flatten


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    return path


def change(path: Path, key: str, value, *, drop: bool = False) -> None:
    document = yaml.safe_load(path.read_text())
    *sections, last = key.split(".")
    target = document
    for section in sections:
        target = target[section]
    if drop:
        del target[last]
    else:
        target[last] = value
    path.write_text(yaml.safe_dump(document))


def refusal(path: Path) -> str:
    with pytest.raises(ParameterError) as caught:
        params.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def refusals(path: Path) -> list[str]:
    with pytest.raises(ParameterError) as caught:
        params.load(path)
    return str(caught.value).splitlines()


def test_the_default_is_valid(file):
    assert params.load(file).compute.workers == 0


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "presets").glob("*.yaml")])
def test_every_preset_is_valid_and_takes_effect(file, name):
    wanted = flatten(presets.read(name, ROOT))
    presets.edit(file, presets.read(name, ROOT))
    after = flatten(params.load(file).model_dump(mode="json"))
    assert {key: after[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tacca", 1, "tacca: unknown key, did you mean taca?"),
        ("probe.training.stepz", 1, "probe.training.stepz: unknown key, did you mean steps?"),
        ("probe.zzzzzz", 1, "probe.zzzzzz: unknown key, known: source, sha256, training"),
        ("probe.training.steps", "many", "probe.training.steps = 'many': input should be a valid integer"),
        ("probe.training.steps", 3.5, "probe.training.steps = 3.5"),
        ("probe.training.steps", True, "probe.training.steps = True"),
        ("probe.training.steps", 0, "probe.training.steps = 0: input should be greater than or equal to 1"),
        ("taca.threshold", 1.5, "taca.threshold = 1.5: must be a sigma in [0, 1]"),
        ("taca.gamma", float("nan"), "taca.gamma"),
        ("probe.training.weight_decay", float("inf"), "probe.training.weight_decay"),
        ("prepare.preset", "foggy", "prepare.preset = 'foggy': input should be 'clean', 'cluttered' or 'occluded'"),
        ("pictures.height", 128, "height / width is 4.00"),
        ("prepare.identities", {"train": 3, "val": 1}, "prepare.identities: test missing"),
        ("taca_generate.guidance", [], "taca_generate.guidance"),
        ("taca.threshold", {"sigma": 0.9}, "taca.threshold: give a sigma in [0, 1], or sigma and tokens"),
        ("taca.threshold", {"fraction": "some"}, "taca.threshold: give a sigma in [0, 1]"),
        ("taca.form", "step", "taca.form = 'step'"),
        ("taca", 1.2, "taca = 1.2"),
        ("gadms_pretrain.method.decoder_depth", 3, "decoder of gadms_pretrain, which has 3 blocks; set both alike"),
        ("probe.sha256", "b8c2", "probe.sha256 = 'b8c2': must be the 64 hexadecimal digits (0-9, a-f) of a SHA-256"),
        ("retrieval.architecture", 3, "retrieval.architecture = 3: input should be a valid dictionary"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(file, key, value, expected):
    change(file, key, value)
    assert expected in refusal(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gadms_finetune.method.decoder_start", "new"),
        ("gadms_finetune.method.mtp_weight", 0.0),
        ("gadms_pretrain.method.mtp_weight", 0.0),
        ("gadms_pretrain.corpus", "none"),
    ],
)
def test_the_decoder_of_fine_tuning_may_have_another_depth_where_none_is_carried_on(file, key, value):
    change(file, key, value)
    change(file, "gadms_finetune.method.decoder_depth", 2)
    assert params.load(file).gadms_finetune.method.decoder_depth == 2


def test_a_misspelt_key_is_named_rather_than_the_one_it_leaves_missing(file):
    change(file, "probe.training.steps", None, drop=True)
    change(file, "probe.training.stesp", 4)
    assert refusal(file) == "params.yaml: probe.training.stesp: unknown key, did you mean steps?"


def test_every_mistake_has_a_line(file):
    change(file, "seed", -1)
    change(file, "taca.threshold", 2)
    change(file, "curate", {"quality_share": 0.5})
    change(file, "compute.storage", "here")
    assert [line.split(":")[1].split("=")[0].strip() for line in refusals(file)] == [
        *("seed", "taca.threshold", "curate.keep_fraction", "curate.matcher", "compute.storage")
    ]


@pytest.mark.parametrize("name", ["sdm", "contrastive", "tal"])
@pytest.mark.parametrize("key", ["mtp_weight", "id_weight"])
def test_the_weight_of_a_loss_that_the_named_method_does_not_have_is_refused(file, name, key):
    change(file, "gadms_finetune.method.name", name)
    change(file, f"gadms_finetune.method.{key}", 0.0)
    assert not getattr(params.load(file).gadms_finetune.method.recipe, key)
    change(file, f"gadms_finetune.method.{key}", 1.0)
    assert f"gadms_finetune.method: {key} = 1.0: {name} masks nothing" in refusal(file)
    change(file, "gadms_finetune.method.name", "nam")
    assert getattr(params.load(file).gadms_finetune.method.recipe, key) == 1.0


def test_a_missing_section_is_named(file):
    change(file, "curate", None, drop=True)
    assert "curate: missing" in refusal(file)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "seed: [1\n", "seed: 1\n\tb: 2\n"])
def test_a_file_that_is_no_mapping_is_refused_in_one_line(file, text):
    file.write_text(text)
    assert str(file) in refusal(file)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "params.yaml")


def test_the_environment_overrides_compute_and_only_compute(file, monkeypatch):
    gamma = params.load(file).taca.gamma
    monkeypatch.setenv("PIPELINES_COMPUTE__WORKERS", "3")
    monkeypatch.setenv("PIPELINES_COMPUTE__DEVICE", "cpu")
    monkeypatch.setenv("PIPELINES_TACA__GAMMA", "9")
    loaded = params.load(file)
    assert (loaded.compute.workers, loaded.compute.device, loaded.taca.gamma) == (3, "cpu", gamma)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("WORKER", "3", "WORKER = '3' in the environment: worker: unknown key, did you mean workers?"),
        ("WORKERS", "-1", "WORKERS = '-1' in the environment: workers = -1: input should be greater"),
        ("WORKERS", "two", "WORKERS = 'two' in the environment: workers = 'two': input should be a valid"),
        ("WORKERS", "[1", "WORKERS = '[1' in the environment: not YAML"),
        ("THREADS", "", "THREADS = '' in the environment: threads = None: input should be a valid"),
        ("STORAGE", "here", "STORAGE = 'here' in the environment: storage = 'here': must be an absolute"),
        ("BACKEND", "job", "* in the environment, over params.yaml: compute"),
    ],
)
def test_a_mistake_in_the_environment_is_not_blamed_on_the_file(file, monkeypatch, variable, value, said):
    monkeypatch.setenv(f"PIPELINES_COMPUTE__{variable}", value)
    assert refusal(file).startswith(f"PIPELINES_COMPUTE__{said}")


def test_the_environment_may_complete_the_file_and_the_files_own_mistake_stays_its_own(file, monkeypatch):
    change(file, "compute.backend", "job")
    assert refusal(file).startswith("params.yaml: compute")
    monkeypatch.setenv("PIPELINES_COMPUTE__STORAGE", "/shared")
    assert params.load(file).compute.storage == "/shared"
    change(file, "taca.gamma", -1.0)
    assert refusal(file).startswith("params.yaml: taca.gamma = -1.0")


def test_numbers_are_read_as_dvc_reads_them(file):
    """YAML 1.2, in which 1e-05 is a number and 010 is ten."""
    original = file.read_text()
    for text in ("1e-05", "1E-5", "1.0e-05", "0.00001", ".1e-4"):
        file.write_text(re.sub(r"neighbours: [0-9.]+", f"neighbours: {text}", original, count=1))
        assert params.load(file).prepare.neighbours == 1e-5
        assert serialize.load_yaml(str(file))["prepare"]["neighbours"] == 1e-5
    document = {
        "a": "1e-05",
        "b": "12e4567",
        "c": 1e-05,
        "d": "yes",
        "e": "010",
        "f": None,
        "z": {"y": [1, True, "é"]},
        "x": "",
    }
    assert parse_yaml(to_yaml(document), "text") == document
    assert list(parse_yaml(to_yaml(document), "text")) == list(document)


@pytest.mark.parametrize("reader", ["load", "edit", "read_yaml"])
def test_a_key_that_is_written_twice_is_one_line_with_both_places(file, reader):
    lines = file.read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("  gamma:"))
    lines.insert(first + 1, "  gamma: 3.0\n")
    file.write_text("".join(lines))
    calls = {"load": params.load, "edit": lambda path: presets.edit(path, {"seed": 1}), "read_yaml": read_yaml}
    with pytest.raises(ParameterError) as raised:
        calls[reader](file)
    assert str(raised.value).endswith(
        f"params.yaml: taca.gamma is written twice, in lines {first} and {first + 2}: keep one"
    )


def test_a_preset_changes_one_of_two_sections_that_are_the_same_by_an_alias(file):
    """Whether the anchor or the alias is changed, and in a section that is in another by an alias."""
    text = file.read_text()
    start, end = text.index("gadms_pretrain:"), text.index("gadms_evaluate:")
    pretrain = text[start : text.index("gadms_finetune:")].replace("  training:\n", "  training: &one\n")
    finetune = re.sub(r"  training:\n(    .*\n)+", "  training: *one\n", text[text.index("gadms_finetune:") : end])
    aliased = text[:start] + pretrain + finetune + text[end:]
    for changed, other in (("gadms_pretrain", "gadms_finetune"), ("gadms_finetune", "gadms_pretrain")):
        file.write_text(aliased)
        before = params.load(file)
        steps = before.gadms_pretrain.training.steps
        assert presets.edit(file, {changed: {"training": {"steps": 900}}}) == [
            f"{changed}.training.steps: {steps} -> 900"
        ]
        after = params.load(file)
        assert getattr(after, changed).training.steps == 900
        assert getattr(after, other) == getattr(before, other)
        assert serialize.load_yaml(str(file)) == read_yaml(file)


def test_an_empty_compute_section_means_its_defaults(file):
    change(file, "compute", None)
    assert params.load(file).compute == Compute()


def test_a_stage_sees_only_the_keys_it_declared(file):
    loaded = params.load(file)
    own = params.Parameters.partial(loaded.only(("seed", "probe", "prepare")))
    assert (own.seed, own.probe, own.prepare) == (loaded.seed, loaded.probe, loaded.prepare)
    with pytest.raises(AttributeError):
        _ = own.taca


def test_a_preset_keeps_comments_and_order(file):
    lines = file.read_text().splitlines()
    presets.edit(file, {"taca": {"gamma": 7.25}, "prepare": {"identities": {"train": 12345}}})
    after = file.read_text().splitlines()
    differing = [(a, b) for a, b in zip(lines, after, strict=True) if a != b]
    assert [b.split("#")[0].strip() for _, b in differing] == ["train: 12345", "gamma: 7.25"]
    assert all(a.partition("#")[2] == b.partition("#")[2] for a, b in differing)


def test_a_preset_says_what_it_changes(file):
    threshold = params.load(file).taca.threshold
    presets.edit(file, {"taca": {"gamma": 1.0}})
    assert presets.edit(file, {"taca": {"gamma": 1.5, "threshold": threshold}}) == ["taca.gamma: 1.0 -> 1.5"]


@pytest.mark.parametrize(
    "values",
    [
        {"taca": {"gama": 1.5}},
        {"tacca": {"gamma": 1.5}},
        {"prepare": {"source": {"drawn": 1}}},
        {"base_model": {"revision": {"a": 1}}},
        {"seed": 1, "taca": {"gamma": -1.0}},
        {"seed": 1, "probe": {"training": {"steps": "many"}}},
    ],
)
def test_a_preset_that_does_not_fit_is_refused_and_nothing_is_written(file, values):
    before = file.read_bytes()
    with pytest.raises(ParameterError):
        presets.edit(file, values)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["params.yaml"]


def test_a_preset_may_put_a_rule_where_there_was_a_number_and_back(file):
    before = file.read_text()
    presets.edit(file, {"taca": {"threshold": {"sigma": 0.97, "tokens": 4096}}})
    assert params.load(file).taca.threshold == {"sigma": 0.97, "tokens": 4096}
    presets.edit(file, {"taca": {"threshold": 0.8}})
    assert params.load(file).taca.threshold == 0.8
    assert comments(file.read_text()) <= comments(before)
    assert "# TACA, eq. 11" in file.read_text()


def comments(text):
    return {line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line}


def test_a_preset_applied_twice_changes_nothing_the_second_time(tmp_path, file):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "tiny.yaml").write_text("taca: {gamma: 7.5}\n")
    assert len(presets.apply(["tiny"], tmp_path)) == 1
    assert presets.apply(["tiny"], tmp_path) == []
    assert presets.flags(["tiny"], tmp_path) == ["-S taca.gamma=7.5"]


@pytest.fixture
def committed(tmp_path, file):
    """A repository whose last commit has params.yaml."""
    for words in (["init", "--quiet"], ["add", "params.yaml"], ["commit", "--quiet", "--message", "first"]):
        as_someone = ["-c", "user.name=one", "-c", "user.email=one@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *as_someone, *words], check=True)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    return tmp_path


def test_what_an_earlier_preset_has_left_is_named_and_default_takes_it_back(committed, file, capsys):
    before = file.read_text()

    def preset(*names: str) -> list[str]:
        assert main(["--workspace", str(committed), "preset", *names]) == 0
        return capsys.readouterr().out.splitlines()

    assert "note" not in preset("smoke")[-1]
    presets.edit(file, {"seed": 5})
    note = preset("cuhk-pedes")[-1]
    assert note.startswith("note: params.yaml keeps what is neither of cuhk-pedes nor the project's own")
    assert "seed 5 (0), prepare.identities.train 40 (2000), " in note
    assert "taca_train.training.steps" not in note  # both presets state it
    assert note.endswith(" and 10 more; `python -m pipelines preset default cuhk-pedes` takes it back")
    changed = preset("default", "cuhk-pedes")
    assert "seed: 5 -> 0" in changed
    assert "report.people: 4 -> 8" in changed
    assert presets.left_over(["cuhk-pedes"], committed) == []
    back = preset("default")
    assert "prepare.source: cuhk-pedes -> drawn" in back
    assert "gadms_finetune.method.name: irra -> default" in back
    assert file.read_text() == before
    assert preset("default") == []


def test_several_presets_are_laid_over_one_another_in_their_order(committed, file):
    presets.apply(["cuhk-pedes", "smoke"], committed)
    both = params.load(file)
    assert (both.prepare.source, both.gadms_finetune.training.steps) == ("cuhk-pedes", 6)
    presets.apply(["smoke", "cuhk-pedes"], committed)
    assert params.load(file).gadms_finetune.training.steps == 63869
    assert presets.resolve(committed, "default") == params.load(ROOT / "params.yaml")


def test_without_git_nothing_is_known_of_the_projects_own_values(tmp_path, file):
    write_presets(tmp_path, tiny="taca: {gamma: 7.5}\n")
    presets.edit(file, {"seed": 5})
    presets.apply(["tiny"], tmp_path)
    assert presets.left_over(["tiny"], tmp_path) == []
    with pytest.raises(ParameterError, match=r"preset default: git has no params\.yaml in the last commit here"):
        presets.apply(["default"], tmp_path)
    assert params.load(file).seed == 5


def test_presets_are_listed_with_what_they_are_for(capsys):
    assert main(["preset"]) == 0
    listed = dict(re.split(r"\s+", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(listed) == {"default", *(path.stem for path in (ROOT / "presets").glob("*.yaml"))}
    assert listed["smoke"] == "Every stage at small sizes: shows that stages run, not their quality."


def write_presets(folder, **files):
    for name, text in files.items():
        path = folder / "presets" / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_preset_lays_its_values_over_those_that_it_extends_in_their_order(tmp_path):
    write_presets(
        tmp_path,
        recipes__long="probe: {training: {steps: 900, batch: 8}}\ntaca: {gamma: 1.1, threshold: 0.9}\n",
        recipes__small="extends: recipes/long\nprobe: {training: {batch: 2, beta2: 0.9}}\n",
        other="taca: {gamma: 1.3, form: linear}\n",
        mine="extends: [recipes/small, other]\nprobe: {training: {beta2: 0.5}}\ntaca: {threshold: {sigma: 0.97, tokens: 4096}}\n",
    )
    assert presets.read("mine", tmp_path) == {
        "probe": {"training": {"steps": 900, "batch": 2, "beta2": 0.5}},
        "taca": {"gamma": 1.3, "threshold": {"sigma": 0.97, "tokens": 4096}, "form": "linear"},
    }
    assert presets.read("other", tmp_path) == {"taca": {"gamma": 1.3, "form": "linear"}}


@pytest.mark.parametrize(
    ("extends", "words"),
    [
        (
            "recipes/no",
            "presets/mine.yaml: extends: preset 'recipes/no' does not exist: one of mine, other, recipes/one",
        ),
        ("mine", "presets/mine.yaml: extends: mine extends itself"),
        ("other", "presets/other.yaml: extends: mine extends itself"),
        ("../params", "presets/mine.yaml: extends: preset '../params' does not exist"),
        ("{a: b}", "presets/mine.yaml: extends: {'a': 'b'} is no name of a preset, and no list of names"),
        ("[other, 3]", "presets/mine.yaml: extends: ['other', 3] is no name of a preset, and no list of names"),
    ],
)
def test_a_preset_that_extends_what_it_cannot_is_one_line(tmp_path, extends, words):
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    write_presets(tmp_path, mine=f"extends: {extends}\n", other="extends: mine\n", recipes__one="seed: 1\n")
    with pytest.raises(ParameterError, match=re.escape(words)):
        presets.read("mine", tmp_path)


def test_recipes_are_no_presets_of_their_own(tmp_path):
    write_presets(tmp_path, mine="seed: 2\n", recipes__one="seed: 1\n")
    with pytest.raises(ParameterError, match=re.escape("preset 'nothing' does not exist: one of mine, default") + "$"):
        presets.read("nothing", tmp_path)


ODD = {
    "base_model": {"revision": None, "source": "it's {a}, b: c\\", "tiny": {"width": 64}},
    "taca": {"threshold": {"sigma": 1e-05, "tokens": 4096}, "layers": [1, 2]},
    "curate": {"detector": {"weights": "a b.pt", "sha256": "1e5"}},
}


@pytest.mark.parametrize("name", [*sorted(path.stem for path in (ROOT / "presets").glob("*.yaml")), "odd"])
def test_the_flags_of_a_preset_give_a_shell_and_dvc_the_values_of_the_preset(tmp_path, file, name):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "presets/odd.yaml").write_text(to_yaml(ODD))
    written = " ".join(presets.flags([name], tmp_path))

    def words(flags: str) -> list[str]:
        command = ["bash", "-c", f"printf '%s\\n' {flags}"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={"FLAGS": written}
        ).stdout.splitlines()

    pasted = words(written)
    if name != "odd":
        assert words("$FLAGS") == pasted  # as by $(...), after which a shell takes no quotes away
    assert set(pasted[::2]) == {"-S"}
    expected = read_yaml(file)
    merge(expected, presets.read(name, tmp_path))
    apply_overrides(file, pasted[1::2])
    assert read_yaml(file) == expected


def merge(document, values):
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(document.setdefault(key, {}), dict):
            merge(document[key], value)
        else:
            document[key] = value


def test_an_unknown_preset_names_those_there_are(tmp_path):
    with pytest.raises(ParameterError, match=r"'smok' does not exist: one of .*; did you mean smoke\?"):
        presets.read("smok", ROOT)


def test_a_key_that_is_left_to_its_default_can_be_set_and_a_small_number_stays_one(file):
    assert "epsilon" not in file.read_text()
    changes = presets.edit(
        file, {"gadms_finetune": {"training": {"epsilon": 1e-5}, "method": {"masking": {"slope": 9.0}}}}
    )
    assert changes == [
        "gadms_finetune.method.masking.slope: default -> 9.0",
        "gadms_finetune.training.epsilon: default -> 1e-05",
    ]
    finetune = params.load(file).gadms_finetune
    assert (finetune.training.epsilon, finetune.method.masking.slope) == (1e-5, 9.0)
    assert presets.edit(file, {"gadms_finetune": {"training": {"epsilon": 1e-5}}}) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validate_every": 15}, "validate_every = 15: must be a multiple of report_every"),
        ({"validate_every": 20, "ema_decay": 0.5}, "set ema_decay to 0"),
    ],
)
def test_validation_that_could_not_be_reported_or_kept_is_refused(file, values, message):
    for key, value in values.items():
        change(file, f"gadms_finetune.training.{key}", value)
    assert message in refusal(file)
