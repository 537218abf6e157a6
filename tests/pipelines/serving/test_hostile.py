"""Hostile requests against the application in this process: some hundred here, 10,000 over sockets in test_deployment.py."""

import re
from itertools import islice

import jsonschema
from hostile_requests import hostile_requests, wrong_in
from served_galleries import client_of, service_on, write_gallery

CANARY = b"CANARY-5f0c1e"


def undocumented(document, asked, answer):
    """What the OpenAPI document does not say of an answer, None where it does, or where it does not know the path."""
    path = asked.path.partition("?")[0]
    for template, operations in document["paths"].items():
        operation = operations.get(asked.method.lower())
        if operation is None or not re.fullmatch(template.replace("{id}", "[A-Za-z0-9_-]+"), path):
            continue
        found = operation["responses"].get(str(answer.status_code))
        if found is None:
            return f"{asked.method} {template}: {answer.status_code}"
        kind = answer.headers["content-type"].partition(";")[0]
        schema = found["content"][kind].get("schema", {})
        if kind == "application/json":
            jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
        return None
    return None


def test_hostile_requests_get_one_sentence_and_nothing_outside_of_the_gallery(tmp_path):
    ids = write_gallery(tmp_path / "gallery")
    for folder in (tmp_path, tmp_path / "gallery", tmp_path / "gallery-pictures"):
        (folder / "canary.txt").write_bytes(CANARY)
    secrets = [CANARY, b"secret-name", str(tmp_path).encode(), b"root:x:0"]
    wrong, harmless, statuses = [], set(), set()
    with client_of(service_on(tmp_path / "gallery", picture_pixels=2_000_000)) as client:
        document = client.get("/openapi.json").json()
        for asked in islice(hostile_requests(0, ids), 150):
            headers = {name: value.encode() for name, value in asked.headers.items()}
            answer = client.request(asked.method, asked.path, content=asked.body, headers=headers)
            statuses.add(answer.status_code)
            if asked.kind == "harmless":
                harmless.add(answer.status_code)
            if asked.method == "HEAD":
                continue
            mistake = wrong_in(answer.status_code, dict(answer.headers), answer.content, secrets)
            if mistake or (mistake := undocumented(document, asked, answer)):
                wrong.append((mistake, asked.kind, asked.path, asked.body[:100]))
    assert not wrong
    assert harmless == {200}
    assert statuses >= {200, 400, 404, 413}
