"""What `serve` is started with: who may reach it, the token, the port."""

import re
import socket
from argparse import Namespace
from pathlib import Path

import pytest
from served_galleries import TOKEN, write_gallery

from components.errors import DataError, ParameterError
from pipelines.commands.serve import COMMAND
from pipelines.serving.access import LOOPBACK_NAMES, Access, host_name, is_loopback, token_digest
from pipelines.serving.answers import Refused
from pipelines.serving.rates import client_of
from pipelines.serving.running import _reason, address, free_port
from pipelines.serving.settings import TOKEN_VARIABLE, ServeOptions, read_token, replica_settings

PLACE = Path("/gallery"), Path("/root")


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_on_loopback_no_token_is_needed_and_no_other_name_is_answered():
    for host in ("127.0.0.1", "localhost", "::1"):
        settings = replica_settings(ServeOptions(host=host), *PLACE)
        assert (settings.hosts, settings.token) == (LOOPBACK_NAMES, None)
    settings = replica_settings(ServeOptions(host="127.3.3.3"), *PLACE)
    assert (settings.hosts, settings.token) == ((*LOOPBACK_NAMES, "127.3.3.3"), None)


@pytest.mark.parametrize(
    "options",
    [
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "192.168.1.5"},
        {"host": "search.example"},
        {"allowed_host": ("search.example",)},
    ],
)
def test_whoever_else_may_reach_it_needs_a_token(options, tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match=r"others can search this gallery, so a token is needed"):
        replica_settings(ServeOptions(**options), *PLACE)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    settings = replica_settings(ServeOptions(token_file=file, **options), *PLACE)
    assert settings.token == token_digest(TOKEN)
    assert TOKEN not in repr(settings)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert replica_settings(ServeOptions(**options), *PLACE) == settings


def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused(tmp_path):
    file = tmp_path / "token"
    for text in ("", "short", "x" * 15, "two words of some length", "ünïcode-of-some-length"):
        file.write_text(text)
        with pytest.raises(ParameterError, match="one word of at least 16 characters"):
            read_token(file)
    file.write_bytes(b"\xff" * 40)
    with pytest.raises(DataError, match="not a text"):
        read_token(file)


def test_a_taken_port_is_one_line_and_0_is_any():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ParameterError, match=rf"cannot listen on 127.0.0.1 port {port} \(Address already in use\)"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(ParameterError, match="--port 70000"):
        ServeOptions(port=70000)


@pytest.mark.parametrize(
    ("host", "text"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80"), ("a.example", "http://a.example:80")],
)
def test_the_address_can_be_opened(host, text):
    assert address(host, 80) == text


@pytest.mark.parametrize(
    ("host", "allowed", "text"),
    [
        ("0.0.0.0", ("Search.example", "other.example"), "http://Search.example:80"),
        ("::", ("2001:db8::1",), "http://[2001:db8::1]:80"),
        ("192.168.1.5", ("search.example",), "http://192.168.1.5:80"),
        ("Box.example", ("search.example",), "http://Box.example:80"),
        ("127.0.0.1", ("search.example",), "http://127.0.0.1:80"),
        ("127.3.3.3", (), "http://127.3.3.3:80"),
    ],
)
def test_the_printed_address_is_answered_and_the_name_of_the_machine_is_not(host, allowed, text, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(socket, "gethostname", lambda: "machine")
    access = Access(replica_settings(ServeOptions(host=host, allowed_host=allowed), *PLACE).hosts)

    def ask(name: str) -> None:
        access.check({"type": "http", "path": "/", "headers": [(b"host", name.encode())]})

    assert address(host, 80, allowed) == text
    ask(text.removeprefix("http://"))
    for name in ("machine", "0.0.0.0", "[::]", "rebound.example"):
        with pytest.raises(Refused):
            ask(f"{name}:80")


def test_for_all_addresses_the_name_of_the_machine_is_printed_where_every_name_is_answered(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(socket, "gethostname", lambda: "machine")
    for host in ("0.0.0.0", "::"):
        assert replica_settings(ServeOptions(host=host), *PLACE).hosts == ()
        assert address(host, 80) == "http://machine:80"


def test_an_allowed_host_has_no_port():
    for name in ("search.example:8000", "10.0.0.1:80", "[::1]:80", "[::1]", "http://search.example"):
        with pytest.raises(ParameterError, match=rf"--allowed-host {re.escape(name)}: .* leave out the port"):
            ServeOptions(allowed_host=("search.example", name))
    names = ("Search.example", "10.0.0.1", "2001:DB8::1")
    assert ServeOptions(allowed_host=names).allowed_host == names


def test_mistakes_are_found_before_ray_is_started(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("")
    options = {
        "gallery": None,
        "model": None,
        "host": "127.0.0.1",
        "port": 0,
        "token_file": None,
        "workspace": tmp_path,
    }
    options |= {"allowed_host": [], "searches_per_minute": 300, "access_log": None, "log_queries": False}
    with pytest.raises(DataError, match="data/index does not exist"):
        COMMAND.run(Namespace(**options))
    with pytest.raises(DataError, match="nowhere: does not exist"):
        COMMAND.run(Namespace(**{**options, "gallery": tmp_path / "nowhere"}))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    write_gallery(tmp_path / "gallery")
    with pytest.raises(ParameterError, match=r"RAY_ADDRESS is 10.0.0.1:6379: unset it"):
        COMMAND.run(Namespace(**{**options, "gallery": tmp_path / "gallery"}))


def test_an_access_log_that_cannot_be_written_and_queries_without_one_are_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"--log-queries: give the file too, --access-log FILE"):
        ServeOptions(log_queries=True)
    with pytest.raises(
        ParameterError, match=r"--access-log .*nowhere/log: cannot be written \(No such file or directory\)"
    ):
        replica_settings(ServeOptions(access_log=tmp_path / "nowhere" / "log"), *PLACE)
    settings = replica_settings(ServeOptions(access_log=tmp_path / "log", log_queries=True), *PLACE)
    assert (settings.access_log, settings.log_queries) == (str(tmp_path / "log"), True)


def test_the_reason_of_a_replica_that_did_not_start_is_found_in_serves_text():
    said = 'Traceback\n  File "x.py", line 1\nray.exceptions.RayTaskError(DataError): ...\ncomponents.errors.DataError: gone\n'
    assert isinstance(_reason(said), DataError)
    assert str(_reason("a\ncomponents.errors.DataError: the model is gone\nmore")) == "the model is gone"
    assert "Ray Serve could not start" in str(_reason("a timeout"))


def test_clients_of_ipv6_are_counted_by_their_network():
    assert client_of({"client": ("2001:db8::1", 5)}) == client_of({"client": ("2001:db8::ffff", 6)}) == "2001:db8::/64"
    assert client_of({"client": ("10.1.2.3", 5)}) == "10.1.2.3"
    assert client_of({"client": None}) == "unknown"


def test_names_in_host_headers_are_read():
    hosts = ("LOCALHOST:80", "[::1]:80", "a.example", "", ":80", "[", "a:b:c")
    assert [host_name(host) for host in hosts] == ["localhost", "::1", "a.example", "", "", "", "a"]
    assert [is_loopback(host) for host in ("", "127.0.0.1.example", "0.0.0.0", "localhost")] == [
        False,
        False,
        False,
        True,
    ]
