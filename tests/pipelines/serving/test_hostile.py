"""Hostile requests against the application in this process: some hundred here, 10,000 over sockets in test_deployment.py."""

from itertools import islice

import pytest
import schemathesis
from hostile_requests import hostile_requests, wrong_in
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served_galleries import client_of, service_on, write_gallery

from pipelines.serving.application import application

CANARY = b"CANARY-5f0c1e"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    ids = write_gallery(place / "gallery")
    for folder in (place, place / "gallery", place / "gallery-pictures"):
        (folder / "canary.txt").write_bytes(CANARY)
    return place, ids


def test_hostile_requests_get_one_sentence_and_nothing_outside_of_the_gallery(place):
    folder, ids = place
    secrets = [CANARY, b"secret-name", str(folder).encode(), b"root:x:0"]
    wrong, harmless = [], set()
    with client_of(service_on(folder / "gallery", picture_pixels=2_000_000)) as client:
        for asked in islice(hostile_requests(0, ids), 150):
            headers = {name: value.encode() for name, value in asked.headers.items()}
            answer = client.request(asked.method, asked.path, content=asked.body, headers=headers)
            body = b"" if asked.method == "HEAD" else answer.content
            if answer.status_code >= 400 and asked.method == "HEAD":
                continue
            if mistake := wrong_in(answer.status_code, dict(answer.headers), body, secrets):
                wrong.append((mistake, asked.kind, asked.path, asked.body[:100]))
            if asked.kind == "harmless":
                harmless.add(answer.status_code)
    assert not wrong
    assert harmless == {200}


def conformance(operation, mode, examples):
    """A test of one operation with requests that fit the document, or that do not."""

    @seed(0)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def conforms(case):
        # A file that is no picture, and a column that this gallery lacks, are allowed by the document.
        unknown = operation.path == "/api/search/picture" or (isinstance(case.body, dict) and case.body.get("where"))
        case.call_and_validate(excluded_checks=[positive_data_acceptance] if unknown else [])

    return conforms


@pytest.fixture(scope="module")
def operations(place):
    app = application(service_on(place[0] / "gallery"))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    return {
        f"{found.method.upper()} {found.path}": found for found in (each.ok() for each in schema.get_all_operations())
    }


PLAIN = ("GET /health", "GET /ready", "GET /metrics", "GET /api/gallery")
"""They take nothing that could be wrong."""


def test_the_application_does_what_its_openapi_document_says(operations):
    """schemathesis: no 500, only documented statuses, types and bodies; what it forbids is refused, what it allows is answered."""
    assert len(operations) == 10
    for mode in GenerationMode:
        conformance(operations["POST /api/search"], mode, 10)()
        conformance(operations["GET /api/pictures/{id}/related"], mode, 5)()


@pytest.mark.heavy
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_operation_does_what_the_openapi_document_says(operations, mode):
    for name, operation in operations.items():
        if not (mode.is_negative and name in PLAIN):
            conformance(operation, mode, 100)()
