"""infra/docker: what the images are made of, what enters them, and the checkout that they make on a shared folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from infra_files import INFRA, ROOT, is_pinned, locked

DOCKER = INFRA / "docker"
SCRIPT = DOCKER / "on-shared-checkout"


def _instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest), continued lines joined, build arguments of FROM filled in."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    steps = [(name, re.sub(r"\s+", " ", rest)) for name, rest in lines]
    first = next(index for index, (name, _) in enumerate(steps) if name == "FROM")
    defaults = dict(rest.split("=", 1) for _, rest in steps[:first])
    return [
        (name, re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], rest) if name == "FROM" else rest)
        for name, rest in steps
    ]


def _stages() -> dict[str, list[tuple[str, str]]]:
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, rest in _instructions():
        if name == "FROM":
            stages[rest.rpartition(" AS ")[2]] = [(name, rest)]
        elif stages:
            stages[list(stages)[-1]].append((name, rest))
    return stages


def _environment(stage: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for name, rest in _stages()[stage] if name == "ENV" for pair in rest.split())


def test_base_images_are_pinned_and_python_is_the_locks() -> None:
    stages = _stages()
    bases = {steps[0][1].partition(" AS ")[0] for steps in stages.values()} - set(stages)
    (python,) = bases
    assert is_pinned(python)
    assert any(name == "ARG" and re.fullmatch(r"UV=uv==[\d.]+", rest) for name, rest in _instructions())
    assert (
        f"--python-version {'.'.join(python.split(':')[1].split('.')[:2])} " in (ROOT / "requirements.lock").read_text()
    )


@pytest.mark.parametrize("stage", ["ray", "mlflow"])
def test_an_image_runs_as_a_numbered_user_with_a_home_of_its_own(stage: str) -> None:
    steps = _stages()[stage]
    user = [rest for name, rest in steps if name == "USER"]
    assert user == ["1000"], "a number: Kubernetes refuses a name where it must not be root"
    home = _environment(stage)["HOME"]
    assert any(
        name == "RUN" and f"useradd --create-home --uid 1000 {home.split('/')[2]}" in _plain(rest)
        for name, rest in steps
    )


def _plain(command: str) -> str:
    return command.replace(" --shell /bin/bash", "")


def test_the_image_holds_exactly_the_lock() -> None:
    installs = [
        rest for name, rest in _instructions() if name == "RUN" and re.search(r"\b(pip|uv) .*(install|sync)", rest)
    ]
    assert installs.pop(0) == "pip install --no-cache-dir ${UV}", "what installs the rest"
    lent = [re.findall(r"--mount=type=bind,source=(\S+),target=(\S+)", install) for install in installs]
    assert lent == [[(lock, "/build/packages.lock")] for lock in ("infra/docker/mlflow.lock", "requirements.lock")]
    for install in installs:
        assert re.findall(r"pip sync --python (\S+) (\S+)", install) == [
            ("/opt/venv/bin/python", "/build/packages.lock")
        ]


def test_the_image_sets_what_runs_rely_on() -> None:
    environment = _environment("ray")
    assert environment["PYTHONHASHSEED"] == "0"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["PATH"].startswith("/opt/venv/bin:")
    assert environment["PIPELINES_HOME"].startswith("/storage/")
    assert list(_stages())[-1] == "ray", "the default target"


def test_the_image_knows_its_commit_and_is_not_built_without() -> None:
    steps = _stages()["ray"]
    assert ("ARG", "GIT_REVISION") in steps, "no default"
    assert any(name == "LABEL" and "org.opencontainers.image.revision=$GIT_REVISION" in rest for name, rest in steps)
    (guard,) = [rest for name, rest in steps if name == "RUN" and "GIT_REVISION" in rest]
    for revision, code in (("", 2), ("0123abc", 0)):
        shell = subprocess.run(["sh", "-c", guard], env={"GIT_REVISION": revision}, capture_output=True, text=True)
        assert shell.returncode == code
        assert ("GIT_REVISION" in shell.stderr) == (code != 0)


def test_kuberays_probes_and_rays_launcher_find_their_programs() -> None:
    (packages,) = [rest for name, rest in _stages()["ray"] if name == "RUN" and "apt-get install" in rest]
    assert {"ca-certificates", "git", "openssh-client", "rsync", "wget"} <= set(packages.split())


def test_the_tracking_server_is_the_version_that_the_pipeline_speaks_to() -> None:
    lock = DOCKER / "mlflow.lock"
    assert locked("mlflow", lock) == locked("mlflow")
    assert f"mlflow=={locked('mlflow')}\n" in (DOCKER / "mlflow.in").read_text(encoding="utf-8")
    assert locked("boto3", lock)
    assert locked("psycopg2-binary", lock)
    assert "://" not in lock.read_text(encoding="utf-8"), "a lock names no registry"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What of this checkout, with the rubbish of daily use in it, enters a build."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    root = tmp_path_factory.mktemp("context")
    for name in filter(None, [*files, *RUBBISH]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    patterns = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    return set(exclude_paths(str(root), [line for line in patterns if line and not line.startswith("#")]))


RUBBISH = [
    ".env",
    "infra/docker/.env",
    "pipelines/.env",
    "data/people/records.parquet",
    "data/raw/cuhk-pedes/reid_raw.json",
    "models/base/model.safetensors",
    "mlflow.db",
    "mlruns/0/meta.yaml",
    "curves/probe/all.tsv",
    "reports/index.html",
    ".runs/prepare-0123/DONE.json",
    ".venv/bin/python",
    ".git/config",
    ".dvc/cache/files/md5/ab/cdef",
    ".dvc/config.local",
    ".dvc/tmp/lock",
    "components/taca/__pycache__/cache.cpython-311.pyc",
    "id_ed25519",
]


@pytest.mark.parametrize("path", RUBBISH)
def test_data_caches_results_and_secrets_stay_out_of_the_image(path: str, context: set[str]) -> None:
    assert path not in context


def test_all_that_a_stage_reads_is_in_the_image(context: set[str]) -> None:
    from pipelines.graph import all_stages
    from pipelines.identity.closure import stage_sources
    from pipelines.params import Parameters, load

    weights = load(ROOT / "params.yaml").weights(Parameters.model_fields)
    published = {path.relative_to(ROOT).as_posix() for folder in weights for path in (ROOT / folder).rglob("*.*")}
    assert len(published) > 3
    needed = {source for stage in all_stages() for source in stage_sources(stage)}
    needed |= published | {
        "params.yaml",
        "dvc.yaml",
        "dvc.lock",
        "requirements.lock",
        ".dvc/config",
        "presets/smoke.yaml",
    }
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipelines").rglob("*.py")}
    assert needed - context == set()


def test_what_the_dockerfile_copies_is_there(context: set[str]) -> None:
    copies = [rest for name, rest in _instructions() if name == "COPY" and "--from=" not in rest]
    sources = {word for copy in copies for word in copy.split()[:-1] if not word.startswith("--")}
    sources |= {path for _, rest in _instructions() for path in re.findall(r"--mount=type=bind,source=([^,]+)", rest)}
    assert sources == {"requirements.lock", "infra/docker/mlflow.lock", "infra/docker/on-shared-checkout", "."}
    assert sources - {"."} <= context


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """An environment in which the script finds a small project in its image, and an empty shared folder."""
    code = tmp_path / "code"
    (code / ".dvc").mkdir(parents=True)
    (code / ".dvc" / "config").touch()
    (code / "dvc.yaml").write_text("stages:\n  write:\n    cmd: echo written > out.txt\n    outs: [out.txt]\n")
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "CODE": str(code),
        "STORAGE": str(tmp_path / "storage"),
        "GIT_REVISION": "0123abc",
        "DVC_NO_ANALYTICS": "1",
    }


def _run(place: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *command], env=place, capture_output=True, text=True, timeout=200)


def test_dvc_works_in_the_shared_checkout_without_git(place: dict[str, str]) -> None:
    done = _run(place, "dvc", "repro")
    assert done.returncode == 0, done.stderr
    checkout = Path(place["STORAGE"], "checkouts", "0123abc")
    assert (checkout / "out.txt").read_text() == "written\n"
    assert (checkout / "dvc.lock").exists()
    assert list(Path(place["STORAGE"], "dvc-cache").rglob("*")), "one cache for all checkouts"
    again = _run(place, "dvc", "repro")
    assert "didn't change" in again.stdout, "the same revision finds what was done"


def test_the_commands_exit_code_is_passed_on(place: dict[str, str]) -> None:
    assert _run(place, "sh", "-c", "exit 75").returncode == 75


def test_an_image_without_its_commit_makes_no_checkout(place: dict[str, str]) -> None:
    done = _run({name: value for name, value in place.items() if name != "GIT_REVISION"}, "true")
    assert done.returncode != 0
    assert "built without its revision" in done.stderr
    assert not Path(place["STORAGE"]).exists()


def test_two_jobs_at_once_get_one_whole_checkout(place: dict[str, str]) -> None:
    for number in range(200):
        Path(place["CODE"], f"file{number}").write_text(str(number))
    jobs = [
        subprocess.Popen([str(SCRIPT), "sh", "-c", "ls | grep -c file"], env=place, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    assert [job.communicate(timeout=200)[0].strip() for job in jobs] == ["200"] * 6
    assert [path.name for path in Path(place["STORAGE"], "checkouts").iterdir()] == ["0123abc"]
