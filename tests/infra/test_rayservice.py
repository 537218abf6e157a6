"""infra/kuberay/rayservice.yaml: against KubeRay's schema of a cluster, Ray Serve's own of its config, and the service's code."""

import json
from typing import Any

import jsonschema
import pytest
import yaml
from infra_files import INFRA, SCHEMAS, documents, locked, ray_start_options


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    (document,) = documents("kuberay/rayservice.yaml")
    return document


@pytest.fixture(scope="module")
def config(service: dict[str, Any]) -> dict[str, Any]:
    return yaml.safe_load(service["spec"]["serveConfigV2"])


@pytest.fixture
def pods(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_kuberay_takes_the_service_and_its_cluster(service: dict[str, Any]) -> None:
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert set(service) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(service["spec"]) == {"serveConfigV2", "rayClusterConfig"}
    definitions = json.loads((SCHEMAS / "kuberay.json").read_text(encoding="utf-8"))
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "x"},
        "spec": service["spec"]["rayClusterConfig"],
    }
    schema = jsonschema.Draft7Validator({"$ref": "#/definitions/RayCluster", **definitions})
    assert [f"{error.json_path}: {error.message}" for error in schema.iter_errors(cluster)] == []
    assert cluster["spec"]["rayVersion"] == locked("ray")


def test_ray_serve_takes_the_config_and_no_other_keys(config: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    read = ServeDeploySchema.model_validate(config)
    for name in config:
        assert name in ServeDeploySchema.model_fields
    (application,) = read.applications
    (deployment,) = application.deployments
    assert deployment.autoscaling_config["max_replicas"] > deployment.autoscaling_config["min_replicas"]
    assert read.logging_config.enable_access_log is False


def test_the_config_names_code_that_takes_its_arguments(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._common.utils import import_attr

    from components.errors import ParameterError
    from pipelines.serving.running import NAME

    (application,) = config["applications"]
    build = import_attr(application["import_path"])
    with pytest.raises(ParameterError, match="a token is needed"):
        build(dict(application["args"]))
    monkeypatch.setenv("PIPELINES_SERVE_TOKEN", "0123456789abcdef")
    bound = build(dict(application["args"]))
    (settings,) = bound._bound_deployment.init_args
    assert (settings.gallery, settings.model) == (application["args"]["gallery"], application["args"]["model"])
    assert settings.token
    assert settings.token != "0123456789abcdef"
    assert settings.hosts == (), "pods are called by any name; the token protects them"
    assert [application["name"], application["deployments"][0]["name"]] == [NAME, bound._bound_deployment.name]
    with pytest.raises(ParameterError, match="galery: unknown"):
        build({"galery": "x"})


def test_every_pod_can_import_the_service_limits_its_proxy_and_has_the_token(pods: list[dict[str, Any]]) -> None:
    from pipelines.serving.proxy import ENVIRONMENT
    from pipelines.serving.settings import TOKEN_VARIABLE

    assert "COPY . /opt/crossmodal-pipelines" in (INFRA / "docker" / "Dockerfile").read_text(encoding="utf-8")
    for pod in pods:
        (container,) = pod["containers"]
        given = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
        assert given.items() >= {"PYTHONPATH": "/opt/crossmodal-pipelines", **ENVIRONMENT}.items()
        assert given[TOKEN_VARIABLE] == {"secretKeyRef": {"name": "crossmodal-search", "key": "token"}}
        assert container["image"] == "IMAGE"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"name": "storage", "mountPath": "/storage", "readOnly": True} in container["volumeMounts"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not pod.get("hostNetwork")


def test_all_replicas_fit_into_the_largest_cluster(service: dict[str, Any], config: dict[str, Any]) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (deployment,) = config["applications"][0]["deployments"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    fit = group["maxReplicas"] * (cpus // deployment["ray_actor_options"]["num_cpus"])
    assert deployment["autoscaling_config"]["max_replicas"] <= fit
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert {f"--{name}" for name in cluster["headGroupSpec"]["rayStartParams"]} <= ray_start_options()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["enableIngress"] is False
