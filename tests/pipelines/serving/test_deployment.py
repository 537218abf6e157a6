"""The service as it runs for people: `python -m pipelines serve`, Ray Serve, sockets. Slow to start, so one service for all."""

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hostile_requests import hostile_requests, wrong_in
from processes import clean_environment, output_of, wait_until
from served_galleries import TOKEN, small_model, write_gallery

from components.search.gallery.reading import Gallery

ROOT = Path(__file__).resolve().parents[3]
GUESSER = "127.0.0.2"
"""Where wrong tokens come from: after ten in a minute that address is refused, and no other."""


def start(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pipelines", "serve", str(folder), *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=clean_environment(PIPELINES_HOME=str(folder.parent / "home"), PYTHONPATH=str(ROOT), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ask(port: int, path: str, body: object = None, token: str = TOKEN) -> tuple[int, dict[str, str], bytes]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers), timeout=120
        ) as answer:
            return answer.status, _lower(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, _lower(error.headers), error.read()


def _send_hostile(served: Any, seed: int, count: int, secrets: list[bytes]) -> tuple[Counter[int], list[object]]:
    """Send hostile requests on connections that are used again where they may be; returns statuses and what was wrong."""
    counted: Counter[int] = Counter()
    wrong: list[object] = []
    ours, guessing = (
        http.client.HTTPConnection("127.0.0.1", served.port, timeout=120, source_address=(address, 0))
        for address in ("127.0.0.1", GUESSER)
    )
    for asked in itertools.islice(hostile_requests(seed, served.ids), count):
        connection = guessing if "Authorization" in asked.headers else ours
        guessing.close()  # they are few, and an idle connection would be closed by the service
        headers = {"Authorization": f"Bearer {TOKEN}", **asked.headers}
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was sent whole
                connection.request(asked.method, asked.path, asked.body, {n: v.encode() for n, v in headers.items()})
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
        except (http.client.HTTPException, OSError) as error:
            if asked.kind not in ("oversized", "uploads"):
                wrong.append((asked.kind, asked.path, repr(error)))
            counted[0] += 1
            connection.close()
            continue
        counted[status] += 1
        if asked.method == "HEAD" and not body:
            continue
        if mistake := wrong_in(status, dict(answer.headers), body, secrets):
            wrong.append((mistake, asked.kind, asked.path, asked.body[:100]))
    ours.close()
    return counted, wrong


def _send_slowly(port: int) -> bool:
    """Send a body byte by byte; returns whether it was cut off, with a sentence."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as client:
        client.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n")
        client.settimeout(0.5)
        for _ in range(400):
            with contextlib.suppress(TimeoutError):
                if not received:
                    client.sendall(b"x")
                if not (more := client.recv(65536)):
                    break
                received += more
    return received.startswith(b"HTTP/1.1 408 ") and b"did not arrive" in received


def _process_of(served: Any, deployment: str) -> set[int]:
    """The processes that are replicas of a deployment."""
    family = psutil.Process(served.process.pid).children(recursive=True)
    return {one.pid for one in family if f"ServeReplica:person-search:{deployment}" in " ".join(one.cmdline())}


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    place = tmp_path_factory.mktemp("serve")
    encoder = small_model(place / "model")
    ids = write_gallery(place / "gallery", encoder=encoder)
    (place / "token").write_text(TOKEN + "\n")
    process = start(
        place / "gallery", "--port", "0", "--token-file", str(place / "token"), "--searches-per-minute", "1000000"
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "open http://127.0.0.1:" in line, output_of(process)
    port = int(line.split("http://127.0.0.1:")[1].split()[0])
    yield SimpleNamespace(process=process, port=port, line=line, folder=place / "gallery", encoder=encoder, ids=ids)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        output_of(process, 120)


@pytest.mark.heavy
@pytest.mark.ray
class TestService:
    def test_it_says_what_it_serves_and_where(self, served):
        assert served.line.startswith(f"12 pictures of {served.folder}: open http://127.0.0.1:{served.port} ")

    def test_it_finds_what_the_model_finds(self, served):
        gallery = Gallery.open(served.folder)
        status, headers, body = ask(served.port, "/api/search", {"sentences": ["a man in a red coat"], "k": 5})
        assert status == 200, body
        scores = np.asarray(gallery.vectors, np.float64) @ served.encoder.sentences(["a man in a red coat"])[0]
        best = [gallery.table["id"][int(row)].as_py() for row in np.argsort(-scores, kind="stable")[:5]]
        assert [match["id"] for match in json.loads(body)["matches"]] == best
        assert headers["x-content-type-options"] == "nosniff"

    def test_every_port_of_it_is_on_loopback(self, served):
        family = [psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children(recursive=True)]
        listening = {
            connection.laddr.ip
            for process in family
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert listening

    def test_the_token_is_not_on_any_command_line(self, served):
        family = [psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children(recursive=True)]
        assert not any(TOKEN in " ".join(process.cmdline()) for process in family)
        assert ask(served.port, "/api/gallery", token="wrong")[0] == 401

    def test_sentences_that_come_together_are_encoded_together(self, served):
        bodies = [{"sentences": [f"a man in a red coat {number}"], "k": 1} for number in range(64)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            statuses = [answer[0] for answer in pool.map(lambda body: ask(served.port, "/api/search", body), bodies)]
        assert statuses == [200] * 64
        counted = ask(served.port, "/metrics")[2].decode()
        (batches,) = [float(line.split()[1]) for line in counted.splitlines() if "batch_sentences_count" in line]
        (sentences,) = [float(line.split()[1]) for line in counted.splitlines() if "batch_sentences_sum" in line]
        assert sentences >= 65
        assert batches < sentences

    def test_headers_that_lift_serves_limits_are_not_passed_and_its_errors_are_json(self, served):
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
            client.sendall(
                b"GET /health HTTP/1.1\r\nHost: localhost\r\nserve_multiplexed_model_id: \xff\r\nX-Session-Id: \xff\r\n"
                b"X-Request-Timeout-Seconds: 0.000001\r\nConnection: close\r\n\r\n"
            )
            received = b""
            while more := client.recv(65536):
                received += more
        assert received.startswith(b"HTTP/1.1 200 "), received

    def test_slow_headers_are_cut_off_in_the_proxy(self, served):
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
            client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")

    def test_no_request_is_lost_while_the_index_is_switched(self, served):
        """The evidence: 16 clients without a pause, five switches; every answer is whole, and of one version."""
        known = {Gallery.open(served.folder).version: set(served.ids)}
        stop = time.monotonic() + 600
        answers: list[tuple[int, str, set[str]]] = []
        going = True

        def client() -> None:
            while going:
                status, _, body = ask(served.port, "/api/search", {"sentences": ["a man"], "k": 50})
                found = json.loads(body)
                answers.append((status, found.get("version", ""), {match["id"] for match in found.get("matches", [])}))

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(client) for _ in range(16)]
            for number in range(2, 7):
                ids = write_gallery(served.folder, first=10 * number, count=6 + number, encoder=served.encoder)
                version = Gallery.open(served.folder).version
                known[version] = set(ids)
                while not any(answered == version for _, answered, _ in list(answers)):
                    assert time.monotonic() < stop, answers[-3:]
                    time.sleep(0.1)
            going = False
            for each in clients:
                each.result()
        assert {status for status, _, _ in answers} == {200}, f"of {len(answers)}"
        assert {version for _, version, _ in answers} == set(known)
        assert all(found == known[version] for _, version, found in answers)
        print(f"{len(answers)} requests during 5 switches, none lost")

    def test_ten_thousand_hostile_requests(self, served):
        """The evidence, over sockets, with some that are slow: no crash, no 500, nothing outside of the gallery."""
        canary = b"CANARY-9d1c"
        for folder in (served.folder.parent, served.folder, served.folder.with_name("gallery-pictures")):
            (folder / "canary.txt").write_bytes(canary)
        secrets = [canary, b"secret-name", str(served.folder.parent).encode(), b"root:x:0", TOKEN.encode()]
        replica_before = _process_of(served, "search")
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            slow = [pool.submit(_send_slowly, served.port) for _ in range(2)]
            parts = [pool.submit(_send_hostile, served, seed, 1250, secrets) for seed in range(8)]
            counted = sum((part.result()[0] for part in parts), Counter())
            wrong = [mistake for part in parts for mistake in part.result()[1]]
            cut_off = [each.result() for each in slow]
        print(dict(counted))
        assert all(cut_off)
        assert not wrong, wrong[:5]
        assert sum(counted.values()) == 10_000
        assert counted[200] > 666, "the harmless ones among them were answered"
        assert not {status for status in counted if status >= 500} - {503}
        assert _process_of(served, "search") == replica_before, "the replica was never lost"
        assert ask(served.port, "/api/gallery")[0] == 200

    def test_the_port_is_taken_for_a_second_one(self, served):
        second = start(served.folder, "--port", str(served.port))
        out, errors = output_of(second, 120)
        assert second.returncode == 2
        assert errors.strip().splitlines() == [
            f"error: serve: cannot listen on 127.0.0.1 port {served.port} (Address already in use): choose others with --host and "
            "--port"
        ], out

    def test_ctrl_c_ends_it_and_all_its_processes(self, served):
        family = psutil.Process(served.process.pid).children(recursive=True)
        served.process.send_signal(signal.SIGINT)
        out, errors = output_of(served.process, 180)
        assert served.process.returncode == 0, errors
        assert out.strip() == "stopping"
        assert "Traceback" not in errors
        wait_until(lambda: not [one for one in family if one.is_running() and one.status() != "zombie"], timeout=60)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", served.port)) != 0


@pytest.mark.heavy
@pytest.mark.ray
def test_a_model_that_cannot_be_opened_is_one_line(tmp_path):
    write_gallery(tmp_path / "gallery")  # of an encoder that no folder holds
    process = start(tmp_path / "gallery", "--port", "0")
    _, errors = output_of(process, 300)
    assert process.returncode in (2, 3), errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "colours" in line
    assert "Traceback" not in errors
