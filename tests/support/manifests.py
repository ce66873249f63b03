"""The manifests of configs/cluster as the tests read them: documents, groups of pods, sizes."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from corpus_asr.config.load import load_config
from corpus_asr.config.run import RunConfig
from corpus_asr.runtime.resources import NodeShape

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "configs" / "cluster"
RAY_FILES = ("rayjob.yaml", "raycluster.yaml", "nightly.yaml")
KINDS = {"RayJob": "rayjobs", "RayCluster": "rayclusters", "RayCronJob": "raycronjobs"}
UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}


class UniqueKeys(yaml.SafeLoader):
    """YAML as the API server reads it: a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(names) == len(set(names)), f"a key comes twice: {names}, {node.start_mark}"
        return super().construct_mapping(node, deep=deep)


@cache
def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.load_all((FOLDER / name).read_text(), Loader=UniqueKeys))


def documents(name: str) -> list[dict[str, Any]]:
    return copy.deepcopy(_documents(name))


def resource(name: str) -> dict[str, Any]:
    """Return the Ray resource of a file."""
    (found,) = (document for document in documents(name) if document["kind"] in KINDS)
    return found


def cluster_of(name: str) -> dict[str, Any]:
    spec = resource(name)["spec"]
    spec = spec.get("jobTemplate", spec)
    return spec.get("rayClusterSpec", spec)


def groups(name: str) -> list[dict[str, Any]]:
    """Return the head group and the worker groups."""
    cluster = cluster_of(name)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (found,) = group["template"]["spec"]["containers"]
    return found


def quantity(text: str) -> float:
    """Read a Kubernetes quantity such as `500m` or `26Gi`."""
    number = text.rstrip("miMG")
    return float(number) * UNITS[text.removeprefix(number)]


def limit(group: dict[str, Any], name: str) -> float:
    return quantity(container(group)["resources"]["limits"].get(name, "0"))


def store_bytes(group: dict[str, Any]) -> int:
    return int(group["rayStartParams"]["object-store-memory"])


def shape(group: dict[str, Any]) -> NodeShape:
    """Return what Ray makes of a pod: KubeRay passes limits on where nothing else is said."""
    cpus = float(group["rayStartParams"].get("num-cpus", limit(group, "cpu")))
    return NodeShape(
        cpus=cpus,
        cores=max(1, int(cpus)),
        gpus=limit(group, "nvidia.com/gpu"),
        memory_bytes=int(limit(group, "memory")) - store_bytes(group),
    )


def nodes(name: str) -> tuple[NodeShape, ...]:
    """Return the machines that are there when a job starts."""
    head, *workers = groups(name)
    return (shape(head), *(shape(group) for group in workers for _ in range(group["replicas"])))


def job(name: str, folder: Path) -> RunConfig:
    """Load the job that a file's ConfigMap holds."""
    (config_map,) = (found for found in documents(name) if found["kind"] == "ConfigMap")
    ((file, text),) = config_map["data"].items()
    (folder / file).write_text(text)
    return load_config(folder / file)
