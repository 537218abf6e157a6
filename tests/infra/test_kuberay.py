"""infra/kuberay: against KubeRay's own schemas, and for what a schema cannot say."""

import copy
import json
import shlex
from typing import Any

import jsonschema
import pytest
from infra_files import INFRA, SCHEMAS, documents, is_pinned, locked, ray_start_options


def _schema(kind: str) -> jsonschema.Draft7Validator:
    definitions = json.loads((SCHEMAS / "kuberay.json").read_text(encoding="utf-8"))
    return jsonschema.Draft7Validator({"$ref": f"#/definitions/{kind}", **definitions})


def _mistakes(document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in _schema(document["kind"]).iter_errors(document)]


@pytest.fixture
def cluster() -> dict[str, Any]:
    (document,) = documents("kuberay/raycluster.yaml")
    return document


@pytest.fixture
def job() -> dict[str, Any]:
    (document,) = documents("kuberay/rayjob.yaml")
    return document


def _pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_kuberay_takes_them(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob")
    assert _mistakes(cluster) == []
    assert _mistakes(job) == []


PLACES: list[tuple[str | int, ...]] = [
    (),
    ("metadata",),
    ("spec",),
    ("spec", "rayClusterSpec"),
    ("spec", "rayClusterSpec", "authOptions"),
    ("spec", "rayClusterSpec", "headGroupSpec"),
    ("spec", "rayClusterSpec", "workerGroupSpecs", 0),
    ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec"),
    ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0),
    ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "securityContext"),
    ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "volumes", 1, "emptyDir"),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)) or "top")
def test_a_misspelt_key_is_found_at_any_depth(job: dict[str, Any], place: tuple[str | int, ...]) -> None:
    inside: Any = copy.deepcopy(job)
    broken = inside
    for step in place:
        inside = inside[step]
    inside["mispelt"] = "x"
    assert any("mispelt" in mistake for mistake in _mistakes(broken))


@pytest.mark.parametrize(
    ("key", "value"), [("backoffLimit", "three"), ("shutdownAfterJobFinishes", "yes"), ("entrypoint", ["dvc", "repro"])]
)
def test_a_value_of_the_wrong_type_is_found(job: dict[str, Any], key: str, value: object) -> None:
    job["spec"][key] = value
    assert any(key in mistake for mistake in _mistakes(job))


def test_the_jobs_cluster_is_the_cluster(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_the_version_is_the_locks(cluster: dict[str, Any]) -> None:
    assert cluster["spec"]["rayVersion"] == locked("ray")


def test_every_container_is_the_one_image_given(cluster: dict[str, Any]) -> None:
    images = {container["image"] for pod in _pods(cluster["spec"]) for container in pod["containers"]}
    assert images == {"IMAGE"}, "no image's name: Kubernetes refuses it until it is replaced"
    assert not is_pinned("IMAGE")
    for name in ("raycluster", "rayjob"):
        text = (INFRA / "kuberay" / f"{name}.yaml").read_text(encoding="utf-8")
        code = "\n".join(line.partition("#")[0] for line in text.splitlines())
        assert code.count("IMAGE") == 1, "what `sed` replaces is the image and nothing else"


def test_nothing_outside_reaches_it_and_nothing_inside_without_the_token(cluster: dict[str, Any]) -> None:
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}, "the operator draws the token"
    assert spec["headGroupSpec"]["enableIngress"] is False
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not any(pod.get("hostNetwork") for pod in _pods(spec))


def test_pods_run_confined_as_the_images_user(cluster: dict[str, Any]) -> None:
    for pod in _pods(cluster["spec"]):
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_work_goes_to_workers_with_gpus_and_the_head_has_none(cluster: dict[str, Any]) -> None:
    spec = cluster["spec"]
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    head, *workers = [pod["containers"][0]["resources"] for pod in _pods(spec)]
    assert "nvidia.com/gpu" not in head["limits"]
    assert all(int(worker["limits"]["nvidia.com/gpu"]) >= 1 for worker in workers)
    assert all(resources["requests"] == resources["limits"] for resources in (head, *workers)), "guaranteed"


def test_ray_has_the_options_it_is_started_with(cluster: dict[str, Any]) -> None:
    spec = cluster["spec"]
    given = {name for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]) for name in group["rayStartParams"]}
    assert {f"--{name}" for name in given} <= ray_start_options()


def test_shared_memory_is_memory_and_smaller_than_the_limit(cluster: dict[str, Any]) -> None:
    for pod in _pods(cluster["spec"]):
        (container,) = pod["containers"]
        (name,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        (volume,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == name]
        assert volume["medium"] == "Memory"
        assert _gibibytes(volume["sizeLimit"]) < _gibibytes(container["resources"]["limits"]["memory"])


def _gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_every_pod_sees_the_storage_that_the_prerequisites_make(cluster: dict[str, Any]) -> None:
    (claim,) = [each for each in documents("kuberay/prerequisites.yaml") if each["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in _pods(cluster["spec"]):
        (container,) = pod["containers"]
        (volume,) = [each["name"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
        assert {"name": volume, "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]
        assert {"name": volume, "mountPath": "/storage"} in container["volumeMounts"]
        assert {"name": "PIPELINES_HOME", "value": "/storage/runs"} in container["env"]


def test_pods_have_the_priority_that_the_prerequisites_make(cluster: dict[str, Any]) -> None:
    (priority,) = [each for each in documents("kuberay/prerequisites.yaml") if each["kind"] == "PriorityClass"]
    assert {pod["priorityClassName"] for pod in _pods(cluster["spec"])} == {priority["metadata"]["name"]}
    assert priority["preemptionPolicy"] == "Never"


def test_probes_are_left_to_kuberay(cluster: dict[str, Any]) -> None:
    containers = [container for pod in _pods(cluster["spec"]) for container in pod["containers"]]
    assert not any(key.endswith("Probe") for container in containers for key in container)


def test_a_job_tries_again_ends_and_leaves_nothing_running(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert "generateName" in job["metadata"], "one file, many jobs"


def test_the_driver_and_its_training_workers_fit_into_the_cluster(job: dict[str, Any]) -> None:
    spec = job["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    (workers,) = [each["value"] for each in container["env"] if each["name"] == "PIPELINES_COMPUTE__WORKERS"]
    gpus = group["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert job["spec"]["entrypointNumGpus"] + int(workers) <= gpus
    assert job["spec"]["entrypointNumCpus"] <= int(container["resources"]["limits"]["cpu"])


def test_the_job_runs_a_program_that_is_in_the_image(job: dict[str, Any]) -> None:
    program, *command = shlex.split(job["spec"]["entrypoint"])
    assert (INFRA / "docker" / program).is_file()
    assert f"infra/docker/{program} /usr/local/bin/" in (INFRA / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert command == ["dvc", "repro"]
