"""The graph, what is written from it, and the closure of source files behind each stage against Python's own imports."""

import ast
import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from workspaces import forked, printed

from components.errors import ParameterError
from pipelines.dvc_files import dvc_yaml as dag
from pipelines.engine.forked import WARM
from pipelines.graph import PRETRAINING, Stage, all_runs, all_stages, find, runs_of
from pipelines.identity.closure import COUNTED, ROOT, sources_behind, stage_sources
from pipelines.params import Parameters

RUNS = all_runs()


def test_every_input_is_the_output_of_an_earlier_stage_or_raw_data():
    """Which also says that the graph has no cycle."""
    written = {"data/raw"}
    for stage in all_stages():
        for run in runs_of(stage):
            assert set(run.inputs.values()) <= written, run.address
        written |= {path for run in runs_of(stage) for path in run.all_outputs}


def test_no_two_stages_write_the_same_path_or_one_inside_another():
    runs = [*RUNS, *(run for stage in PRETRAINING for run in runs_of(stage))]
    paths = [Path(path) for run in runs for path in run.all_outputs]
    assert len(set(paths)) == len(paths)
    assert not [(a, b) for a in paths for b in paths if a in b.parents]


def test_every_key_that_a_stage_reads_is_in_the_schema_and_compute_is_read_by_none():
    read = {key for stage in all_stages() for key in stage.reads}
    assert read == set(Parameters.model_fields) - {"compute"}


def test_every_stage_can_be_found_by_its_address():
    assert [find(run.address) for run in RUNS] == RUNS


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("probee", "one of prepare, probe"),
        ("taca_train", "taca_train@lora, taca_train@taca"),
        ("probe@x", "write probe"),
    ],
)
def test_an_address_that_does_not_exist_is_answered_with_those_that_do(address, hint):
    with pytest.raises(ParameterError, match=hint):
        find(address)


def test_dvc_yaml_is_what_the_graph_says():
    assert (ROOT / "dvc.yaml").read_text() == dag.render(), "run `make dag`"


def ignored_by_git(paths: list[str]) -> list[str]:
    """Those of `paths` that git ignores; they need not be there."""
    asked = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input="\n".join(paths),
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode in (0, 1), asked.stderr  # 1: none is ignored
    return asked.stdout.split()


def test_git_ignores_every_output_that_dvc_keeps():
    # git asks whether a path that is not there is a folder: by its slash.
    in_git = {path for run in RUNS for path in (run.metrics, run.headline_file)}
    kept = [path if Path(path).suffix else f"{path}/" for run in RUNS for path in run.all_outputs if path not in in_git]
    assert ignored_by_git(kept) == kept


def test_git_keeps_the_metrics():
    assert ignored_by_git([path for run in RUNS for path in (run.metrics, run.headline_file) if path]) == []


def test_dvc_has_as_metrics_the_headline_numbers_alone_and_each_number_once():
    """Every number of `metrics` is a column of `dvc exp show`; the committed files of all numbers hold some 600."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    entries = [entry.get("do", entry) for entry in stages.values()]
    metrics = [path for entry in entries for item in entry.get("metrics", []) for path in item]
    assert metrics
    assert all(path.endswith(".headlines.json") for path in metrics)
    outs = [path for entry in entries for item in entry["outs"] if isinstance(item, dict) for path in item]
    assert len(outs) == len(stages)  # the file of all numbers, which git keeps
    shown = [name for run in RUNS for name in run.headlines(json.loads((ROOT / run.metrics).read_text()))]
    assert len(shown) == len(set(shown)) < 30
    assert {"alignment.taca.guidance_1", "R@1.gadms", "checks_met"} < set(shown)


def test_a_headline_number_is_named_by_arm_and_by_what_the_star_stands_for():
    metrics = {"guidance_2.5": {"alignment": {"mean": 60.0, "low": 1}}, "other": 3, "guidance_1": {"alignment": {}}}
    assert find("taca_evaluate@taca").headlines(metrics) == {"alignment.taca.guidance_2.5": 60.0}
    assert find("gadms_evaluate@gadms").headlines({"R@1": 40, "mAP": "none"}) == {"R@1.gadms": 40.0}
    assert find("prepare").headlines({"R@1": 40}) == {}


LOADED = """
import importlib, json, sys
for name in [name for name in sys.modules if name.split(".")[0] in ("components", "pipelines")]:
    del sys.modules[name]
for name in sys.argv[1:]:
    importlib.import_module(name)
ours = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ("components", "pipelines")]
print(json.dumps([file for file in ours if file]))
"""


@pytest.fixture(scope="module")
def loaded_by(warm_address: str) -> Callable[..., set[str]]:
    """Files of ours that Python itself loads for these modules, found by asking it."""

    @cache
    def ask(*modules: str) -> set[str]:
        with printed() as texts:
            assert forked(LOADED, *modules, **{**os.environ, WARM: warm_address}).wait(500) == 0
        return {Path(path).relative_to(ROOT).as_posix() for path in json.loads(texts[0])}

    return ask


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "taca_generate", "gadms_pretrain", "train_parity", "report"])
def test_what_python_loads_for_a_stage_is_in_its_closure(name, loaded_by):
    """But for what orchestration alone loads, such as the checkpoint store."""
    loaded = loaded_by(f"pipelines.stages.{name}") - loaded_by("pipelines.engine.context", "pipelines.engine.execution")
    counted = {path for path in loaded if path.startswith(("components/", "pipelines/stages/"))}
    stage = next(stage for stage in all_stages() if stage.name == name)
    assert f"pipelines/stages/{name}.py" in counted
    assert counted <= set(stage_sources(stage))


def test_the_closure_finds_lazy_imports_and_leaves_out_what_is_not_imported(tmp_path):
    files = {
        "pipelines/stages/__init__.py": "",
        "pipelines/stages/probe.py": "import torch\nfrom components.a import b\nfrom pipelines.engine.context import C\n",
        "pipelines/engine/context.py": "import components.of_orchestration\n",
        "components/__init__.py": "",
        "components/a/__init__.py": "",
        "components/a/b.py": "def f():\n    from components.c import name_inside\n",
        "components/a/unused.py": "",
        "components/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import components.d\n",
        "components/d.py": "import components.a.b\n",
        "components/of_orchestration.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert stage_sources(Stage("probe", "", (), {}, {}), tmp_path) == [
        "components/__init__.py",
        "components/a/__init__.py",
        "components/a/b.py",
        "components/c.py",
        "components/d.py",
        "pipelines/stages/__init__.py",
        "pipelines/stages/probe.py",
    ]


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def imports(path: Path) -> list[tuple[str, tuple[str, ...], int]]:
    """Every (module, names taken from it, relative level), wherever it stands."""
    found: list[tuple[str, tuple[str, ...], int]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, (), 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", tuple(alias.name for alias in node.names), node.level))
    return found


def test_components_know_nothing_of_orchestration():
    forbidden = {"ray", "mlflow", "dvc", "pipelines"}
    used = {(path, module) for path in sources("components") for module, _, _ in imports(path)}
    assert len(used) > 1000
    assert not [(str(path), module) for path, module in used if module.split(".")[0] in forbidden]


@cache
def passed_on(module: str, name: str) -> bool:
    """Whether this package has the name from one of its files, and neither defines it nor has a file called so."""
    package = ROOT.joinpath(*module.split("."), "__init__.py")
    if module.split(".")[0] not in ("components", "pipelines") or not package.is_file():
        return False
    if name in {node.name for node in ast.parse(package.read_text()).body if hasattr(node, "name")}:
        return False
    file = package.parent / name
    return not (file.with_suffix(".py").is_file() or file.is_dir())


@pytest.mark.parametrize("folder", ["components", "pipelines"])
def test_imports_name_the_file_that_they_mean(folder):
    """The closure reads names: a relative import, or a name that a package passes on from one of its files, would hide the file."""
    for path in sources(folder):
        for module, names, level in imports(path):
            assert level == 0, f"{path}: relative import of {module}"
            for name in names:
                assert not passed_on(module, name), f"{path}: {module} only passes on {name}"


RUNNERS = ("pipelines.engine.runner", "pipelines.engine.worker", "pipelines.jobs.submitter", "pipelines.jobs.entry")
"""With a stage's own file, all that its result passes through: what calls it, takes its metrics and moves its outputs."""
NOT_COUNTED = {
    "pipelines.engine": "chooses device and processes, and starts the stage; rounding by thread count is in the fingerprint",
    "pipelines.threads": "how waiting threads wait; their number is in the fingerprint",
    "pipelines.jobs": "moves a stage to the cluster and its outputs back, checked by digest",
    "pipelines.scratch": "keeps files under way; metrics and curves are written as they were reported",
    "pipelines.records": "describes a finished run",
    "pipelines.tracking": "copies metrics to MLflow",
    "pipelines.dvc_files": "hashes outputs for DVC",
    "pipelines.locks": "waits",
    "pipelines.identity": "computes the fingerprint",
    "pipelines.params": "checks parameters; their values are in the fingerprint",
    "pipelines.schema": "checks parameters; their values are in the fingerprint",
    "pipelines.graph": "names stages, arms and paths, which are in the fingerprint",
    "pipelines.workspace": "names folders",
    "pipelines.errors": "words and exit codes",
    "pipelines.redaction": "words",
}
USED_BY_THEM = {
    "components.errors": "words",
    "components.files": "writes atomically, hashes",
    "components.settings": "checks parameters",
    "components.training.checkpoint": "reads back the bytes it wrote, checked by digest",
    "components.training.context": "seeds of random streams, by the stage's name for each",
    "components.training.loop": "the exception that says that training stopped on request",
    "components.training.config": "types of parameters",
    "components.training.numbered": "types of parameters",
    "components.gadms.methods": "types of parameters",
    "components.taca.config": "types of parameters",
    "components.taca.memory_options": "types of parameters",
    "components.taca.toy.config": "types of parameters",
    "components.persons.curation.limits": "types of parameters",
    "components.persons.drawn.config": "types of parameters",
}
"""The modules of components that uncounted rooms import; a stage that computes with one imports it itself."""


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("stage", [*all_stages(), *PRETRAINING], ids=lambda stage: stage.name)
def test_every_module_that_a_result_passes_through_is_counted_or_excused(stage):
    ours = ("components", "pipelines")
    passed = set(sources_behind([*RUNNERS, f"pipelines.stages.{stage.name}"], counted=ours)) - {"pipelines/__init__.py"}
    uncounted = {module_of(path) for path in passed - set(stage_sources(stage))}
    rooms = {".".join(module.split(".")[:2]) for module in uncounted if module.startswith("pipelines.")}
    assert rooms == set(NOT_COUNTED)


def test_rooms_that_are_not_counted_use_of_the_components_only_what_computes_no_result():
    paths = [ROOT / path for path in sources_behind(RUNNERS, counted=("pipelines",))]
    used = {module for path in paths for module, _, _ in imports(path) if module.startswith("components.")}
    assert used == set(USED_BY_THEM)


def test_stage_files_import_no_more_of_the_rest_than_their_context_and_parameters():
    allowed = {"pipelines.engine.context", "pipelines.params", "pipelines.graph"}
    more = {  # train_parity starts Ray Train itself
        "parity.py": {
            "pipelines.engine.execution",
            "pipelines.schema.running",
            "pipelines.scratch.folder",
            "pipelines.scratch.metric_log",
        }
    }
    for path in sources("pipelines/stages"):
        used = {module for module, _, _ in imports(path) if module.startswith("pipelines")}
        assert {module for module in used if not module.startswith(COUNTED)} <= allowed | more.get(path.name, set())


def test_dvc_is_told_of_every_source_and_every_input():
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert list(document["stages"]) == [stage.name for stage in all_stages()]
    for stage in all_stages():
        entry = document["stages"][stage.name]
        entry = entry.get("do", entry)
        assert set(stage_sources(stage)) < set(entry["deps"])
        assert entry["params"] == [*stage.reads, "compute.threads"]  # what the fingerprint counts
