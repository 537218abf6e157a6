"""The routes: what they answer, and what they refuse."""

import io
import json
import re
import threading
import time

import numpy as np
import pytest
from PIL import Image
from served_galleries import COLOURS, TOKEN, ColourEncoder, client_of, encoded, service_on, write_gallery

from components.search.gallery.reading import Gallery
from pipelines.serving import gallery_facts
from pipelines.serving.access_log import AccessLog
from pipelines.serving.limits import LIMITS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "gallery"
    write_gallery(folder)
    return folder


@pytest.fixture(scope="module")
def service(folder):
    return service_on(folder)


@pytest.fixture(scope="module")
def client(service):
    with client_of(service) as client:
        yield client


@pytest.fixture(scope="module")
def gallery(folder):
    return Gallery.open(folder)


def ids(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [match["id"] for match in answer.json()["matches"]]


def brute_force(gallery, vector, keep=lambda row: True) -> list[str]:
    scores = np.asarray(gallery.vectors, np.float64) @ vector
    rows = [row for row in np.argsort(-scores, kind="stable") if keep(gallery.table.slice(int(row), 1).to_pylist()[0])]
    return [gallery.table["id"][int(row)].as_py() for row in rows]


def error_of(answer, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


def test_a_sentence_finds_what_brute_force_finds(client, gallery):
    answer = client.post("/api/search", json={"sentences": ["someone in red"], "k": 12})
    assert ids(answer) == brute_force(gallery, ColourEncoder().sentences(["red"])[0])
    found = answer.json()
    assert found["version"] == gallery.version
    assert found["unread"] == ""
    first = found["matches"][0]
    assert first["caption"] == "a person in red, number 0"
    assert first["camera"] == 0
    assert first["score"] == pytest.approx(1, abs=1e-3)
    assert not {"file", "files", "sha256", "bytes"} & set(first)
    assert "secret-name" not in answer.text


def test_filters_hold_and_k_limits(client, gallery):
    vector = ColourEncoder().sentences(["blue"])[0]
    expected = brute_force(gallery, vector, lambda row: row["camera"] == 1)
    asked = {"sentences": ["someone in blue"], "k": 3, "where": ["camera=1"]}
    assert ids(client.post("/api/search", json=asked)) == expected[:3]
    expected = brute_force(gallery, vector, lambda row: row["camera"] == 1 and row["identity"] == "4")
    asked = {"sentences": ["someone in blue"], "where": ["camera=1", "identity=4"]}
    assert ids(client.post("/api/search", json=asked)) == expected


def test_a_picture_finds_itself_alone_and_with_a_sentence(client, gallery):
    content = gallery.picture(5)
    upload = {"picture": ("dropped.png", content, "image/png")}
    assert ids(client.post("/api/search/picture", files=upload, data={"k": "1"})) == [gallery.table["id"][5].as_py()]
    both = client.post("/api/search/picture", files=upload, data={"sentence": "in white", "weight": "0.01", "k": "12"})
    assert ids(both)[0] in brute_force(gallery, ColourEncoder().sentences(["white"])[0])[:3]


def test_a_picture_of_the_gallery_may_be_the_query(client, gallery):
    like = gallery.table["id"][3].as_py()
    nearest = [each for each in brute_force(gallery, np.asarray(gallery.vectors[3], np.float64)) if each != like]
    assert ids(client.post("/api/search", json={"like": like, "k": 4})) == nearest[:4]


def test_the_end_that_the_model_does_not_read_is_said(client):
    sentence = " ".join(["red"] * 20 + ["with", "a", "hat"])
    assert client.post("/api/search", json={"sentences": [sentence]}).json()["unread"] == "with a hat"


def test_originals_and_thumbnails_go_by_id(client, gallery):
    identity = gallery.table["id"][0].as_py()
    original = client.get(f"/api/pictures/{identity}")
    assert (original.content, original.headers["content-type"]) == (gallery.picture(0), "image/png")
    assert original.headers["content-security-policy"] == "default-src 'none'"
    small = client.get(f"/api/pictures/{identity}/thumbnail")
    assert small.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(small.content)).size == (12, 24)
    again = client.get(f"/api/pictures/{identity}", headers={"If-None-Match": original.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fcurrent",
        "%2e%2e/%2e%2e/current",
        "secret-name-0.png",
        "0" * 16,
        "%00",
        "a" * 200,
        "//etc/passwd",
        "-1",
        ".",
    ],
)
def test_no_path_leads_to_a_file(client, path):
    for place in ("/api/pictures/", "/static/"):
        answer = client.get(place + path)
        assert answer.status_code in (400, 404), answer.text
        assert set(answer.json()) == {"error"}


def test_a_picture_that_is_gone_is_not_found_and_no_path_is_told(tmp_path):
    first = write_gallery(tmp_path / "gallery")[0]
    (tmp_path / "gallery-pictures" / "secret-name-0.png").write_bytes(b"another")
    with client_of(service_on(tmp_path / "gallery")) as client:
        sentence = error_of(client.get(f"/api/pictures/{first}"), 404)
    assert "must be updated" in sentence
    assert "secret-name" not in sentence
    assert str(tmp_path) not in sentence


def test_related_pictures_are_the_persons_own_else_the_nearest(client, gallery):
    table = gallery.table.to_pylist()
    known = client.get(f"/api/pictures/{table[1]['id']}/related").json()
    others = {row["id"] for row in table if row["identity"] == table[1]["identity"]} - {table[1]["id"]}
    assert known["by"] == "identity"
    assert {match["id"] for match in known["matches"]} == others
    unknown = client.get(f"/api/pictures/{table[-1]['id']}/related?k=4").json()
    nearest = brute_force(gallery, np.asarray(gallery.vectors[-1], np.float64))
    assert unknown["by"] == "nearest"
    assert [match["id"] for match in unknown["matches"]] == [each for each in nearest if each != table[-1]["id"]][:4]


def test_words_are_weighed(client, gallery):
    asked = {"sentence": "somebody in red", "id": gallery.table["id"][0].as_py()}
    found = client.post("/api/words", json=asked).json()
    assert [word for word, _ in found["words"]] == ["somebody", "in", "red"]
    assert max(found["words"], key=lambda pair: pair[1])[0] == "red"
    assert found["by"] == "leave one out"


def test_the_gallery_tells_columns_for_filters_and_hides_files(client):
    facts = client.get("/api/gallery").json()
    columns = {column["name"]: column for column in facts["columns"]}
    assert (facts["size"], facts["version"], facts["model"]) == (12, "000001", "colours")
    assert columns["camera"]["values"] == [0, 1, 2]
    assert columns["seen"]["range"] == [0, 5]
    assert columns["identity"]["values"] == list("012345")
    assert not {"file", "files", "sha256", "id"} & set(columns)
    assert facts["examples"][0] == "a person in red, number 0"


def test_the_folders_of_a_model_are_not_told():
    model = gallery_facts._FOLDERS.sub
    names = ("/srv/models/gadms", "ViT-B-16:/srv/w.pt@384x128", "pipeline", "hf-hub:owner/name", "models/mine")
    told = [model(r"\1", name) for name in names]
    assert told == ["gadms", "ViT-B-16:w.pt@384x128", "pipeline", "hf-hub:owner/name", "models/mine"]


def test_a_hidden_column_cannot_be_asked_about(client):
    for where in ("file~secret-name-1", " file =x", "sha256~0", "nothing=1", "camera"):
        sentence = error_of(client.post("/api/search", json={"sentences": ["red"], "where": [where]}), 400)
        assert "secret" not in sentence
        assert "sha256," not in sentence


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "give sentences"),
        ({"sentences": []}, "give sentences"),
        ({"sentences": [" \t "]}, "must hold a word"),
        ({"sentences": ["a\u0000b"]}, "control characters"),
        ({"sentences": ["x" * (LIMITS.sentence_characters + 1)]}, "at most 1000 characters"),
        ({"sentences": ["red"] * (LIMITS.sentences + 1)}, "at most 8 items"),
        ({"sentences": "red"}, "sentences"),
        ({"sentences": ["red"], "k": 0}, "k: "),
        ({"sentences": ["red"], "k": LIMITS.results + 1}, "k: "),
        ({"sentences": ["red"], "k": "5"}, "k: "),
        ({"sentences": ["red"], "k": 1.5}, "k: "),
        ({"sentences": ["red"], "k": True}, "k: "),
        ({"sentences": ["red"], "weight": 1.5}, "weight: "),
        ({"sentences": ["red"], "where": ["camera=1"] * 9}, "where: "),
        ({"sentences": ["red"], "where": ["camera=\n1"]}, "where.0: "),
        ({"sentences": ["red"], "like": "../../etc/passwd"}, "like: "),
        ({"sentences": ["red"], "more": 1}, "more: "),
        ([], ""),
    ],
)
def test_a_wrong_request_gets_one_sentence_that_names_the_field(client, body, said):
    sentence = error_of(client.post("/api/search", json=body), 400)
    assert said in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"sentences": ["\\ud800"]}',
        b'{"sentences": ["red"], "k": NaN}',
        b'{"sentences": ["red"], "weight": Infinity}',
        b'{"sentences": ["red"], "k": ' + b"9" * 5000 + b"}",
        b'{"sentences": ["red"], "k": 1e400}',
        b"[" * 30_000,
        b'{"a":' * 9 + b"1" + b"}" * 9,
    ],
)
def test_json_that_would_harm_a_parser_is_refused(client, body):
    error_of(client.post("/api/search", content=body, headers={"Content-Type": "application/json"}), 400)


def test_media_types_methods_and_sizes_are_told_apart(client):
    error_of(client.post("/api/search", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    error_of(client.post("/api/search/picture", json={}), 415)
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    error_of(client.post("/api/search", content=b"{}", headers=packed), 415)
    assert "GET" not in client.put("/api/search").headers["allow"]
    error_of(client.put("/api/search"), 405)
    large = b'{"sentences": ["' + b"x" * LIMITS.json_bytes + b'"]}'
    error_of(client.post("/api/search", content=large, headers={"Content-Type": "application/json"}), 413)


def png_that_claims(width: int, height: int) -> bytes:
    """A small file whose header claims another size, with a valid checksum."""
    import struct
    import zlib

    content = encoded((1, 2, 3))
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 415),
        (b"GIF89a", 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        (b"%PDF-1.4", 415),
        (encoded(COLOURS["red"])[:60], 400),
        (encoded(COLOURS["red"], (1, 50)), 400),
        (png_that_claims(20_000, 20_000), 413),
        (png_that_claims(2**31 - 1, 2**31 - 1), 413),
        (png_that_claims(6_400, 6_400), 413),
        (png_that_claims(300, 300), 400),
    ],
)
def test_a_picture_that_is_none_or_explodes_is_refused(client, content, status):
    error_of(client.post("/api/search/picture", files={"picture": content}), status)


@pytest.mark.parametrize(
    ("files", "data"),
    [
        ({}, {"sentence": "red"}),
        ({"picture": encoded(COLOURS["red"]), "other": b"x"}, {}),
        ({"picture": encoded(COLOURS["red"])}, {"k": "many"}),
        ({"picture": encoded(COLOURS["red"])}, {"weight": "nan"}),
        ({"picture": encoded(COLOURS["red"])}, {"sentence": "x" * 5000}),
        ({"picture": encoded(COLOURS["red"])}, {"where": ["camera=1"] * 20}),
    ],
)
def test_a_wrong_form_is_refused(client, files, data):
    error_of(client.post("/api/search/picture", files=files or {"x": b""}, data=data), 400)


def test_answers_carry_the_headers_that_browsers_obey(client):
    for answer in (client.get("/health"), client.get("/nothing"), client.post("/api/search", json={})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_another_site_is_refused_and_another_name(client):
    for headers in (
        {"Host": "attacker.example"},
        {"Host": "127.0.0.1.attacker.example"},
        {"Host": "attacker.example:80@127.0.0.1"},
        {"Origin": "http://attacker.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        error_of(client.post("/api/search", json={"sentences": ["red"]}, headers=headers), 403)
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        same = {"Host": host, "Origin": f"http://{host}"}
        assert client.post("/api/search", json={"sentences": ["red"]}, headers=same).status_code == 200


def test_without_the_token_nothing_is_told(folder):
    with client_of(service_on(folder, token=TOKEN)) as client:
        for path in ("/api/gallery", "/api/pictures/0", "/metrics", "/openapi.json", "/nothing"):
            answer = client.get(path)
            assert "token is needed" in error_of(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200
        assert client.get("/api/gallery", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        for wrong in (f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}", TOKEN, "Bearer \xff"):
            header = {"Authorization": wrong.encode("latin-1")}
            error_of(client.get("/api/gallery", headers=header), 401)


def test_the_page_gets_the_token_as_a_cookie_that_is_not_the_token(folder):
    with client_of(service_on(folder, token=TOKEN)) as client:
        error_of(client.get("/", params={"token": "wrong"}, follow_redirects=False), 401)
        answer = client.get("/", params={"token": TOKEN}, follow_redirects=False)
        cookie = answer.headers["set-cookie"]
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert client.get("/api/gallery").status_code == 200  # the client sends it
        client.cookies.clear()
        client.cookies.set("person_search", "0" * 64)
        error_of(client.get("/api/gallery"), 401)


def test_wrong_tokens_are_counted_and_then_nobody_of_that_address_is_heard(folder):
    with client_of(service_on(folder, token=TOKEN, wrong_tokens_per_minute=3)) as client:
        statuses = [
            client.get("/api/gallery", headers={"Authorization": f"Bearer {n:032d}"}).status_code for n in range(5)
        ]
        right = client.get("/api/gallery", headers={"Authorization": f"Bearer {TOKEN}"})
        assert statuses == [401, 401, 401, 429, 429]
        assert right.status_code == 429
        assert client.get("/health").status_code == 200


def test_searches_beyond_the_rate_are_told_when_to_come_back(folder):
    with client_of(service_on(folder, searches_per_minute=5)) as client:
        answers = [client.post("/api/search", json={"sentences": ["red"]}) for _ in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert "at most 5 per minute" in error_of(answers[-1], 429)
        assert client.get("/api/gallery").status_code == 200  # the page goes on working


class _Slow(ColourEncoder):
    """Holds each sentence until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def sentences(self, texts):
        self.go.wait(20)
        return super().sentences(texts)


def test_too_many_waiting_searches_are_refused_and_late_ones_end(folder):
    service = service_on(folder, waiting=1, search_seconds=0.5)
    slow = _Slow()
    service.gallery.current.searcher.encoder = slow
    with client_of(service) as client:
        answers = []
        ask = lambda: answers.append(client.post("/api/search", json={"sentences": ["red"]}))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:  # two threads, and room for one that waits
            thread.start()
        deadline = time.monotonic() + 20
        while not service.searching.is_full and time.monotonic() < deadline:
            time.sleep(0.01)
        busy = client.post("/api/search", json={"sentences": ["red"]})
        assert "waiting" in error_of(busy, 503)
        assert "waiting" in error_of(client.get("/ready"), 503)
        assert client.get("/health").status_code == 200
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [503] * 3
        assert all("no answer within 0.5 seconds" in answer.json()["error"] for answer in answers)
        assert all(answer.headers["retry-after"] == "1" for answer in (*answers, busy))
        slow.go.set()
        while service.searching.is_full and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.post("/api/search", json={"sentences": ["red"]}).status_code == 200


def test_a_failure_is_one_sentence_without_what_was_asked(folder, caplog):
    service = service_on(folder)
    service.gallery.current.searcher.search = lambda *a, **b: 1 / 0
    with client_of(service) as client:
        sentence = error_of(client.post("/api/search", json={"sentences": ["a very private red coat"]}), 500)
        assert "log" in sentence
        assert "private" not in sentence + caplog.text
        assert caplog.text.count("ZeroDivisionError") >= 1
        assert "/api/search failed" in caplog.text
        assert client.get("/health").status_code == 200


def test_nothing_that_is_asked_is_logged_or_counted_by_its_words(client, caplog):
    with caplog.at_level("DEBUG"):
        client.post("/api/search", json={"sentences": ["a very private red coat"]})
    counted = client.get("/metrics").text
    assert 'person_search_requests_total{method="POST",route="/api/search",status="200"}' in counted
    assert "private" not in counted + caplog.text
    assert re.search(r"^person_search_gallery_pictures 12\.0$", counted, re.MULTILINE)


def test_the_access_log_has_a_line_per_request_and_what_was_asked_only_where_chosen(folder, gallery, tmp_path):
    first = gallery.table["id"][0].as_py()
    lines = {}
    for queries in (False, True):
        file = tmp_path / f"{queries}.jsonl"
        service = service_on(folder)
        service.access_log = AccessLog(file, queries=queries)
        with client_of(service) as client:
            client.post("/api/search", json={"sentences": ["someone in red"], "k": 3, "where": ["camera=1"]})
            client.get(f"/api/pictures/{first}")
            client.post("/api/search", json={"like": "0" * 16})
            client.post("/api/words", json={"sentence": "in red", "id": first})
            file.rename(tmp_path / "moved")  # as logrotate does
            client.get("/nothing")
        texts = [(tmp_path / name).read_text() for name in ("moved", file.name)]
        lines[queries] = [json.loads(line) for text in texts for line in text.splitlines()]
        assert [(line["method"], line["route"], line["status"]) for line in lines[queries]] == [
            ("POST", "/api/search", 200), ("GET", "/api/pictures/{id}", 200), ("POST", "/api/search", 404),
            ("POST", "/api/words", 200), ("GET", "none", 404),
        ]  # fmt: skip
        assert all(line["client"] == "testclient" and 0 <= line["seconds"] < 60 for line in lines[queries])
    assert not any("query" in line or first in str(line) for line in lines[False])
    assert [line.get("query") for line in lines[True]] == [
        {"sentences": ["someone in red"], "where": ["camera=1"], "k": 3}, None, {"like": "0" * 16, "k": 20},
        {"sentences": ["in red"], "picture": first}, None,
    ]  # fmt: skip


def test_the_openapi_document_tells_every_route_and_every_refusal(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/api/search",
        "/api/search/picture",
        "/api/words",
        "/api/pictures/{id}",
        "/api/pictures/{id}/thumbnail",
        "/api/pictures/{id}/related",
        "/api/gallery",
        "/health",
        "/ready",
        "/metrics",
    }
    for path in document["paths"].values():
        for operation in path.values():
            assert {"400", "401", "403", "404", "413", "429", "503"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
    json.dumps(document)
