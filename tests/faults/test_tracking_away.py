"""A tracking server that is away, fails, or answers into the void, before and while a stage runs.

The server is a real `mlflow server`; a relay before it can be told to misbehave.
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from processes import wait_until
from servers import free_port

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory):
    """(port, store) of an MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    store, port = f"sqlite:///{folder / 'mlflow.db'}", free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        store,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--artifacts-destination", str(folder / "artifacts")],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(port), process, said=(folder / "log").read_text, pause=0.3)
        yield port, store
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def answers(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


class Relay(ThreadingHTTPServer):
    """Passes requests on. `mode`: "well", "500" (answers so, asks nobody), "away" (hangs up), "void" (asks, and hangs up)."""

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = target
        self.mode = "well"
        self.hung_up = 0

    def handle_error(self, request, client_address):
        pass  # hanging up is what it is for


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Relay

    def relay(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        mode = self.server.mode
        if mode == "500":
            self.answer(
                500, b'{"error_code": "INTERNAL_ERROR", "message": "the database is on fire"}', "application/json"
            )
            return
        if mode != "away":
            connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=20)
            headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        if mode != "well":
            self.server.hung_up += 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.answer(response.status, content, response.headers.get("Content-Type", "application/json"))

    def answer(self, status, content, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = relay


@pytest.fixture
def relay(server):
    relay = Relay(server[0])
    threading.Thread(target=relay.serve_forever, daemon=True).start()
    yield relay
    relay.shutdown()


@pytest.fixture
def address(relay):
    return f"http://127.0.0.1:{relay.server_address[1]}"


@pytest.fixture
def clear(server):
    """No runs of an earlier test on the server."""
    from mlflow import MlflowClient

    client = MlflowClient(server[1])
    experiment = client.get_experiment_by_name("crossmodal-pipelines")
    if experiment:
        for run in client.search_runs([experiment.experiment_id]):
            client.delete_run(run.info.run_id)


def test_a_server_that_answers_500_at_the_start_stops_a_stage_before_any_work(with_people, relay, address):
    relay.mode = "500"
    finished = with_people.run("probe", MLFLOW_TRACKING_URI=address)
    assert finished.returncode == 75
    assert "Traceback" not in finished.stderr
    (line,) = [text for text in finished.stderr.splitlines() if text.startswith("error: ")]
    assert "answers that it has failed itself" in line
    assert "nothing was run" in line
    assert with_people.steps("probe") == []


@pytest.mark.parametrize("mode", ["500", "away", "void"])
def test_a_server_that_fails_in_mid_run_costs_a_warning_and_no_point(
    started, relay, address, server, clear, same_results, mode
):
    place, process = started(MLFLOW_TRACKING_URI=address)
    relay.mode = mode
    time.sleep(4)
    relay.mode = "well"
    _out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    if mode == "void":
        assert relay.hung_up
    shutil.copy(server[1].removeprefix("sqlite:///"), place.root / "mlflow.db")
    same_results(place)


def test_a_server_away_until_after_the_end_is_told_by_the_next_stage(
    started, relay, address, server, clear, same_results
):
    place, process = started(MLFLOW_TRACKING_URI=address)
    relay.mode = "away"
    _out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "could not be closed as FINISHED" in errors
    assert (place.root / "models/probe").exists()
    relay.mode = "well"
    finished = place.run("prepare", MLFLOW_TRACKING_URI=address)
    assert finished.returncode == 0, finished.stderr
    shutil.copy(server[1].removeprefix("sqlite:///"), place.root / "mlflow.db")
    same_results(place)


def test_many_processes_that_touch_a_new_database_first_make_one_that_is_whole(place, tmp_path):
    (place.root / "mlflow.db").unlink()
    code = (
        "import sys; from pathlib import Path; from pipelines.tracking.runs import connect, RunFacts;"
        "from pipelines.tracking.pipeline_run import open_pipeline_run;"
        "from pipelines.workspace import Workspace; root = Path(sys.argv[1]); folder = root / '.home' / sys.argv[2];"
        "folder.mkdir(parents=True); tracker = connect(Workspace(root, root / '.home')); open_pipeline_run(tracker);"
        "run = tracker.open(folder, RunFacts(sys.argv[2], {'pipelines.stage': 'x'}, {}, {}));"
        "run.end('FINISHED', {'number': 1.0}); run.close()"
    )

    def touch(number):
        command = [sys.executable, "-c", code, str(place.root), f"x-{number}"]
        return subprocess.run(command, env=place._environment({}), capture_output=True, text=True, timeout=200)

    with ThreadPoolExecutor(4) as pool:
        finished = list(pool.map(touch, range(4)))
    assert [one.returncode for one in finished] == [0, 0, 0, 0], finished
    runs = place.tracked("x")
    assert sorted(run.info.run_name for run in runs) == ["x-0", "x-1", "x-2", "x-3"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len([run for run in place.tracked() if "pipelines.pipeline" in run.data.tags]) == 1
