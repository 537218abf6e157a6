"""A team's servers: runs in PostgreSQL and artifacts in S3 through an MLflow server; and no secret in any of them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pretended_stages import CODE, make_chain, pretend
from servers import SECRET, Store, mlflow_server, postgresql, s3_store

from pipelines.provenance.lineage import trace
from pipelines.provenance.verification import Verification, upstream
from pipelines.records.manifests import download_manifest
from pipelines.scratch.manifest import Manifest
from pipelines.tracking import runs as tracking
from pipelines.workspace import Workspace

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


SECRETS = {
    "RAY_AUTH_TOKEN": "ray-t0ken-of-the-cluster",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-passw0rd",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": "aws-sess1on-token",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with s3_store(tmp_path_factory.mktemp("s3") / "objects") as found:
        yield found


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgresql() as found:
        yield found


@pytest.fixture(scope="module")
def server(database: str, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(database, store, tmp_path_factory.mktemp("mlflow") / "log") as url:
        yield url


def rows(database: str, query: str) -> list[Any]:
    """Straight from PostgreSQL, past MLflow."""
    import psycopg2

    with psycopg2.connect(database.replace("+psycopg2", "")) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def test_stages_are_tracked_in_postgresql_with_artifacts_in_s3_and_verify_and_lineage_read_them_back(
    server, database, store, empty_store, tmp_path
):
    chain = make_chain(tmp_path / "workspace", empty_store)
    stages = ["prepare", "probe"]
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, server)
        done = {address: chain.run(address) for address in stages}
        chain.write_lock(stages)
        tracker = tracking.connect(chain.workspace)
        assert list(Verification(chain.workspace, tracker).check(upstream(stages, chain.workspace))) == []
        bare = Workspace(chain.root, tmp_path / "no-scratch")  # another machine: only the server knows
        manifest = download_manifest(done["probe"]["run"], tracker.client)
        assert manifest == Manifest(**done["probe"])
        step = trace(manifest, bare.home, tracker.client)
    assert [(used.path, used.step and used.step.manifest.run) for used in step.inputs] == [
        ("data/people", done["prepare"]["run"])
    ]

    ids = {done[address]["run"] for address in stages}
    found = rows(database, "select run_uuid, status from runs where name like '%/%'")
    assert {run: status for run, status in found if run in ids} == dict.fromkeys(ids, "FINISHED")
    ((points,),) = rows(
        database, f"select count(*) from metrics where run_uuid = '{done['probe']['run']}' and key = 'train/loss'"
    )
    assert points == 3
    stored = {path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if path.is_file()}
    for run in ids:
        assert any(
            name.startswith("mlflow/") and name.endswith(f"{run}/artifacts/provenance/DONE.json") for name in stored
        )
    (patch_file,) = [
        name for name in stored if name.endswith(f"{done['probe']['run']}/artifacts/provenance/code.patch")
    ]
    assert (store.folder / patch_file).read_text() == CODE.patch


def test_no_secret_reaches_a_log_a_run_an_artifact_or_a_file(server, database, store, place):
    """A real stage, with every secret of a cluster in its environment and a password in the tracking address."""
    host = server.removeprefix("http://")
    environment = {**store.environment, **SECRETS, "MLFLOW_TRACKING_URI": f"http://someone:ur1-passw0rd@{host}"}
    before = {path for path in store.folder.rglob("*") if path.is_file()}
    finished = place.run("prepare", **environment)
    assert finished.returncode == 0, finished.stderr
    failed = place.run("probe", **environment, PIPELINES_COMPUTE__DEVICE="cuda")  # a stage that ends badly, too
    assert failed.returncode != 0
    nowhere = {"MLFLOW_TRACKING_URI": "http://someone:ur1-passw0rd@127.0.0.1:1", "PIPELINES_HOME": f"{place.home}2"}
    away = place.run("prepare", **{**environment, **nowhere})
    assert away.returncode == 75
    assert "***@127.0.0.1:1" in away.stderr

    texts = {
        "output": "".join(one.stdout + one.stderr for one in (finished, failed, away)),
        "database": json.dumps(
            [
                rows(database, f"select * from {table}")
                for table in ("tags", "params", "runs", "datasets", "inputs", "input_tags")
            ],
            default=str,
        ),
    }
    written = [path for path in place.root.rglob("*") if path.is_file()] + sorted(set(store.folder.rglob("*")) - before)
    texts |= {str(path): path.read_bytes().decode("utf-8", "replace") for path in written if path.is_file()}
    assert any(name.endswith("provenance/DONE.json") for name in texts)
    assert any(name.endswith("mlflow.json") for name in texts)
    for value in (*SECRETS.values(), "ur1-passw0rd"):
        assert [name for name, text in texts.items() if value in text] == [], value
