"""What may stand in the YAML files of clusters/, by the schemas of those who read them, with unknown keys refused.

Each `check_…` takes what a file holds and raises ValueError at the first thing that its reader would not understand.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import kubernetes_validate
import ray.autoscaler
import yaml
from googleapiclient.discovery_cache import get_static_doc
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig
from ray.scripts.scripts import start as ray_start

Schema = dict[str, Any]

KUBERNETES = "1.33"
POD_LABELS = {"app": "nlft-ray"}
"""Free maps, whose keys no schema knows: what stands in them here."""
KUBERNETES_RESOURCES = {"cpu", "memory", "storage", "nvidia.com/gpu"}
RAY_RESOURCES = {"CPU", "GPU", "driver"}
OBJECT_META = {"name", "namespace", "labels", "annotations"}


# ------------------------------------------------------------------------------------------------- in general


def closed(node: Any) -> Any:
    """A JSON schema in which every object that names its properties takes no others."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: closed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and not isinstance(node.get("additionalProperties"), dict):
        found["additionalProperties"] = False
    return found


def must(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)


def obey(validator: Any, values: Any) -> None:
    problem = jsonschema.exceptions.best_match(validator.iter_errors(values))
    must(problem is None, str(problem))


def maps_called(values: Any, *names: str) -> Iterator[Mapping[str, Any]]:
    """Every mapping that stands under one of these keys, wherever."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key in names and isinstance(value, dict):
                yield value
            yield from maps_called(value, *names)
    elif isinstance(values, list):
        for value in values:
            yield from maps_called(value, *names)


def read(path: Path) -> Any:
    """Aliases of one anchor are one object."""
    return yaml.load(path.read_text(), yaml.CSafeLoader)


# ------------------------------------------------------------------------------------------------- Kubernetes


@cache
def _ray_job(crd: Path) -> Schema:
    versions = read(crd)["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    schema["properties"]["metadata"] = {"type": "object", "properties": {key: {} for key in OBJECT_META}}
    return schema


def unknown_keys(schema: Schema, values: Any, where: str = "") -> Iterator[str]:
    """Where keys stand that the schema does not name. Much quicker than a validator on a schema of this size."""
    if isinstance(values, list):
        for value in values:
            yield from unknown_keys(schema["items"], value, f"{where}[]")
    elif isinstance(values, dict):
        named, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, value in values.items():
            if key in named or isinstance(others, dict):
                yield from unknown_keys(named.get(key, others), value, f"{where}.{key}")
            else:
                yield f"{where}.{key}"


def check_ray_job(job: Any, crd: Path) -> None:
    """KubeRay's resource definition, and that the free maps hold what the rest of the file counts on."""
    unknown = list(unknown_keys(_ray_job(crd), job))
    must(not unknown, f"unknown keys: {unknown}")
    _check_free_maps(job["spec"])
    obey(jsonschema.Draft202012Validator(_ray_job(crd)), job)


def _check_free_maps(spec: Any) -> None:
    cluster = spec["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    for name, group in groups.items():
        must(group["labels"] == {"pool": name}, f"{name}: its label must be `pool: {name}`")
        must(set(group.get("resources", {})) <= RAY_RESOURCES, f"{name}: unknown resources")
        must(group["template"]["metadata"] == {"labels": POD_LABELS}, f"{name}: the pod's labels")
        container = group["template"]["spec"]["containers"][0]
        for needed in ("startupProbe", "readinessProbe", "livenessProbe", "resources"):
            must(needed in container, f"{name}: no {needed}")
    must(set(json.loads(spec["entrypointResources"])) <= RAY_RESOURCES, "entrypointResources")
    must(spec["submitterPodTemplate"]["metadata"] == {"labels": POD_LABELS}, "the submitter's labels")
    for amounts in maps_called(spec, "requests", "limits"):
        must(set(amounts) <= KUBERNETES_RESOURCES, f"unknown resources: {set(amounts)}")


def check_kubernetes(values: Any) -> None:
    """Kubernetes' own resources."""
    try:
        kubernetes_validate.validate(values, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.InvalidSchemaError) as error:
        raise ValueError(str(error)) from error
    must(values["metadata"]["labels"] == POD_LABELS, "metadata.labels")
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    must(all(labels in (POD_LABELS, operator) for labels in maps_called(values, "matchLabels")), "matchLabels")
    must(all(set(found) <= KUBERNETES_RESOURCES for found in maps_called(values, "requests")), "resources")


# -------------------------------------------------------------------------------------- Ray's cluster launcher


@cache
def _launcher() -> Any:
    file = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    return jsonschema.Draft7Validator(closed(json.loads(file.read_text())))


def check_launcher(values: Any) -> None:
    """Ray's schema, what Ray itself checks, and each node's configuration by the cloud's own interface."""
    obey(_launcher(), values)
    validate_config(prepare_config(values))
    check_node = {"aws": _check_aws_node, "gcp": _check_gcp_node}[values["provider"]["type"]]
    for name, node in values["available_node_types"].items():
        must(node["labels"] == {"pool": name}, f"{name}: its label must be `pool: {name}`")
        must(set(node["resources"]) <= RAY_RESOURCES, f"{name}: unknown resources")
        check_node(node["node_config"])
    if "security_group" in values["provider"]:
        _check_aws("AuthorizeSecurityGroupIngress", values["provider"]["security_group"])
    home = f"/home/{values['auth']['ssh_user']}"
    must(set(values["file_mounts"]) == {f"{home}/nlft-ray", f"{home}/.ray/auth_token"}, "file_mounts")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        must(bool(ray_start_options(values[key])), f"{key} must start Ray")


def _check_aws_node(node: Mapping[str, Any]) -> None:
    _check_aws("RunInstances", {**node, "MinCount": 1, "MaxCount": 1})  # which the launcher adds


@cache
def _ec2() -> Any:
    return botocore.session.get_session().get_service_model("ec2")


def _check_aws(operation: str, values: Mapping[str, Any]) -> None:
    shape = _ec2().operation_model(operation).input_shape
    report = botocore.validate.ParamValidator().validate(values, shape)
    must(not report.has_errors(), report.generate_report())


@cache
def _gcp_instance() -> Any:
    document = json.loads(get_static_doc("compute", "v1"))
    schemas = closed(_json_schema(document["schemas"]))
    return jsonschema.Draft202012Validator({"$ref": "#/schemas/Instance", "schemas": schemas})


def _json_schema(node: Any) -> Any:
    """Google's discovery documents are JSON schemas but for references, and for types that are annotations."""
    if isinstance(node, list):
        return [_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        return {"$ref": f"#/schemas/{node['$ref']}"}
    dropped = {"required", "format", "default"} if "type" in node and isinstance(node["type"], str) else set()
    kept = {key: _json_schema(value) for key, value in node.items() if key not in dropped}
    if node.get("format") == "int64":
        kept["type"] = ["string", "integer"]
    return kept


def _check_gcp_node(node: Mapping[str, Any]) -> None:
    obey(_gcp_instance(), node)


def ray_start_options(commands: Sequence[str]) -> list[str]:
    """The options of every `ray start` in shell commands, each of which must exist."""
    known = {option for parameter in ray_start.params for option in parameter.opts}
    used: list[str] = []
    for line in commands:
        for command in re.split(r"[;&|]+", line):
            words = shlex.split(command)
            if words[:2] == ["ray", "start"]:
                used += [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
    must(set(used) <= known, f"ray start has no {sorted(set(used) - known)}")
    return used


# ------------------------------------------------------------------------------------------------ which is whose


def check_runtime_env(values: Any) -> None:
    """Ray only warns of unknown fields."""
    for keys, known in ((values, RuntimeEnv.known_fields), (values["config"], RuntimeEnvConfig.known_fields)):
        must(set(keys) <= known, f"unknown: {sorted(set(keys) - known)}")
    RuntimeEnv(**values)


def checker(path: Path, crd: Path) -> Callable[[Any], None]:
    """How a file in clusters/ is checked. A file that nothing is known of is an error."""
    if path.parent.name == "kuberay":
        kind = read(path)["kind"]
        return (lambda values: check_ray_job(values, crd)) if kind == "RayJob" else check_kubernetes
    return {"aws": check_launcher, "gcp": check_launcher, "runtime_env": check_runtime_env}[path.stem]
