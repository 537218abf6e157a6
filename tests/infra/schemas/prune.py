"""Makes kuberay.json from KubeRay's custom resource definitions: `python prune.py FOLDER`, which holds kuberay_ray.io_*.yaml.

The definitions repeat the whole pod template for every group of nodes, in two versions, 2.3 MB in all. Kept is version v1; equal
parts are stored once, as `definitions`; and objects are closed: Kubernetes drops or refuses keys that a schema does not name, so a
misspelt key must be an error here too.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KINDS = {"RayCluster": "kuberay_ray.io_rayclusters.yaml", "RayJob": "kuberay_ray.io_rayjobs.yaml"}
STORE_ONCE_FROM_CHARACTERS = 400
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}


def closed(schema: Any) -> Any:
    """`schema` as JSON schema, in which an object has no other keys than those named."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not open_ended:
        result["additionalProperties"] = False
    return result


def stored_once(kinds: dict[str, Any]) -> dict[str, Any]:
    """One schema for all `kinds`, with parts that occur more than once under `definitions`."""
    seen: Counter[str] = Counter()

    def count(part: Any) -> None:
        if isinstance(part, dict) and isinstance(part.get("type"), str):  # a schema, not a table of properties
            seen[json.dumps(part, sort_keys=True)] += 1
        for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            count(child)

    count(kinds)
    shared = [text for text, times in seen.items() if times > 1 and len(text) >= STORE_ONCE_FROM_CHARACTERS]
    names = {text: f"part{number}" for number, text in enumerate(sorted(shared))}

    def refer(part: Any, top: bool = False) -> Any:
        if isinstance(part, list):
            return [refer(item) for item in part]
        if not isinstance(part, dict):
            return part
        name = None if top else names.get(json.dumps(part, sort_keys=True))
        return {"$ref": f"#/definitions/{name}"} if name else {key: refer(value) for key, value in part.items()}

    parts = {name: refer(json.loads(text), top=True) for text, name in names.items()}
    return {"definitions": {**refer(kinds), **parts}}


def main(folder: Path) -> None:
    kinds = {}
    for kind, name in KINDS.items():
        definition = yaml.load((folder / name).read_text(), Loader=yaml.CSafeLoader)
        (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"] |= {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": METADATA,  # the API server's own; the definitions leave it open
        }
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        kinds[kind] = schema
    target = Path(__file__).with_name("kuberay.json")
    target.write_text(json.dumps(stored_once(kinds), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
