"""infra/docker/compose.yaml: against the Compose schema, and against what the programs that it starts accept."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from infra_files import INFRA, SCHEMAS, documents, is_pinned, options_in, ray_start_options

SETTINGS = {
    "GIT_REVISION": "0123abc",
    "POSTGRES_PASSWORD": "p",
    "S3_ACCESS_KEY": "a",
    "S3_SECRET_KEY": "s",
    "RAY_AUTH_TOKEN": "t",
}
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\})")


def _interpolated(value: Any, settings: dict[str, str]) -> Any:
    """`value` with its ${NAME}, ${NAME:-default} and ${NAME:?message} filled in, as Compose does after reading the YAML."""
    if isinstance(value, dict):
        return {key: _interpolated(item, settings) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, settings) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if set_to := settings.get(match["name"]):
            return set_to
        if match["kind"] == "-":
            return match["rest"]
        raise KeyError(f"{match['name']}: {match['rest'] or 'has no default'}")

    return VARIABLE.sub(fill, value)


@pytest.fixture
def compose() -> dict[str, Any]:
    (document,) = documents("docker/compose.yaml")
    return _interpolated(document, SETTINGS)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads((SCHEMAS / "compose-spec.json").read_text(encoding="utf-8")))


def test_it_is_a_compose_file(compose: dict[str, Any], schema: jsonschema.Draft7Validator) -> None:
    assert [error.message for error in schema.iter_errors(compose)] == []


@pytest.mark.parametrize("key", ["imagee", "port", "depend_on", "health_check"])
def test_a_misspelt_key_is_found(compose: dict[str, Any], schema: jsonschema.Draft7Validator, key: str) -> None:
    broken = copy.deepcopy(compose)
    broken["services"]["mlflow"][key] = "x"
    assert key in str([error.message for error in schema.iter_errors(broken)])


def test_what_is_named_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert set(service.get("networks", [])) <= set(compose["networks"]), name
        mounted = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert mounted <= set(compose["volumes"]), name


def test_what_a_service_waits_for_starts_whenever_it_does(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed in service.get("depends_on", {}):
            starts_with = services[needed].get("profiles")
            assert starts_with is None or set(service["profiles"]) <= set(starts_with), (name, needed)


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert {port.rpartition(":")[2] for port in published} == {"5000", "7070", "8265"}
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not any(service.get("network_mode") == "host" for service in compose["services"].values())


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert {name: image for name, image in images.items() if not is_pinned(image)} == {}


@pytest.mark.parametrize("image", ["postgres", "postgres:latest", "registry:5000/postgres", "minio/minio:stable", "a:"])
def test_an_image_without_a_version_is_not_pinned(image: str) -> None:
    assert not is_pinned(image)


def test_only_the_tracking_server_reaches_the_database(compose: dict[str, Any]) -> None:
    assert compose["networks"]["database"]["internal"] is True
    inside = {name for name, service in compose["services"].items() if "database" in service.get("networks", [])}
    assert inside == {"postgres", "mlflow", "mlflow-upgrade"}
    assert compose["services"]["postgres"]["networks"] == ["database"]


def test_tables_and_buckets_are_made_before_the_server_starts(compose: dict[str, Any]) -> None:
    services = compose["services"]
    done, healthy = {"condition": "service_completed_successfully"}, {"condition": "service_healthy"}
    assert services["mlflow"]["depends_on"] == {"mlflow-upgrade": done, "buckets": done}
    assert services["mlflow-upgrade"]["depends_on"] == {"postgres": healthy}
    assert services["buckets"]["depends_on"] == {"s3": healthy}
    for name in ("postgres", "s3", "mlflow", "ray-head"):
        assert services[name]["healthcheck"]["test"][0] == "CMD", name
    # A one-shot that starts again after success never completes.
    assert services["mlflow-upgrade"]["restart"] == services["buckets"]["restart"] == "on-failure:5"


def test_upgrade_and_server_use_the_same_database(compose: dict[str, Any]) -> None:
    upgrade, server = compose["services"]["mlflow-upgrade"], compose["services"]["mlflow"]
    assert upgrade["environment"] == server["environment"]
    assert upgrade["command"] == ['exec mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"']
    # No password on a command line, where every process on the machine could read it.
    assert "p" not in re.split(r"[:@/]", server["environment"]["MLFLOW_BACKEND_STORE_URI"])


def test_the_database_driver_named_is_the_one_installed(compose: dict[str, Any]) -> None:
    from sqlalchemy.engine import make_url

    url = make_url(compose["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"])
    assert f"\n{url.get_driver_name()}-binary==" in (INFRA / "docker" / "mlflow.lock").read_text(encoding="utf-8")


def test_the_tracking_server_knows_its_options_and_refuses_strange_hosts(compose: dict[str, Any]) -> None:
    from mlflow.cli import server
    from mlflow.server.security_utils import is_allowed_host_header

    program, *options = compose["services"]["mlflow"]["command"]
    assert program == "server"
    assert options_in(" ".join(options)) <= {name for parameter in server.params for name in parameter.opts}
    (allowed,) = [option.removeprefix("--allowed-hosts=") for option in options if "--allowed-hosts" in option]
    asked_by_ray = compose["services"]["ray-head"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    for host in (asked_by_ray, "localhost:5000", "127.0.0.1:5001"):
        assert is_allowed_host_header(allowed.split(","), host), host
    for host in ("evil.example", "evil.example:5000", "mlflow.evil.example:5000"):
        assert not is_allowed_host_header(allowed.split(","), host), host


def test_ray_starts_with_options_that_it_has_and_only_with_a_token(compose: dict[str, Any]) -> None:
    for name in ("ray-head", "ray-worker", "ray-gpu-worker"):
        service = compose["services"][name]
        assert service["command"][:2] == ["ray", "start"]
        assert options_in(" ".join(service["command"])) <= ray_start_options()
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"] == "t"
        assert service["volumes"] == ["storage:/storage"], "all see one shared folder"


def test_the_example_settings_name_all_that_must_be_set_and_hold_no_secret(compose: dict[str, Any]) -> None:
    text = (INFRA / "docker" / "compose.yaml").read_text(encoding="utf-8")
    required = {match["name"] for match in VARIABLE.finditer(text) if match["name"] and match["kind"] != "-"}
    example = dict(_assignments((INFRA / "docker" / ".env.example").read_text(encoding="utf-8")))
    assert required <= set(example)
    assert set(example) == set(SETTINGS) | {"RAY_WORKERS"}
    assert {name: example[name] for name in SETTINGS} == dict.fromkeys(SETTINGS, "")


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name, value


@pytest.mark.parametrize("missing", sorted(set(SETTINGS) - {"RAY_AUTH_TOKEN"}))
def test_an_empty_setting_stops_compose(missing: str) -> None:
    (document,) = documents("docker/compose.yaml")
    with pytest.raises(KeyError, match=missing):
        _interpolated(document, {**SETTINGS, missing: ""})
