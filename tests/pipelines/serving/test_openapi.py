"""The OpenAPI document against what the application does, by schemathesis; test_hostile.py checks answers against it, quickly."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served_galleries import service_on, write_gallery

from pipelines.serving.application import application

pytestmark = pytest.mark.heavy  # for the imports alone
PLAIN = ("GET /health", "GET /ready", "GET /metrics", "GET /api/gallery")
"""They take nothing that could be wrong."""


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
def operations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi") / "gallery"
    write_gallery(folder)
    schema = schemathesis.openapi.from_asgi("/openapi.json", application(service_on(folder)))
    return {f"{each.method.upper()} {each.path}": each for each in (one.ok() for one in schema.get_all_operations())}


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_operation_does_what_the_document_says(operations, mode):
    """No 500, only documented statuses, types and bodies; what the document forbids is refused, what it allows is answered."""
    assert len(operations) == 10
    for name, operation in operations.items():
        if not (mode.is_negative and name in PLAIN):
            conformance(operation, mode, 100)()
