"""The manifests of configs/cluster and their guide: fields that KubeRay knows, sizes that hold."""

import gzip
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from corpus_asr.runtime.shutdown import GRACE_S

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "configs" / "cluster"
GUIDES = [REPOSITORY / "docs" / "how-to" / f"kubernetes{name}.md" for name in ("", "_cluster")]
GUIDE = "\n".join(page.read_text() for page in GUIDES)
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
HOME = re.findall(r"--home-dir (\S+)", DOCKERFILE)[0]
USER = int(re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[0])
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
RAY_FILES = ("rayjob.yaml", "raycluster.yaml", "nightly.yaml")
ONE_MACHINE = "nightly-one-machine.yaml"
KINDS = {"RayJob": "rayjobs", "RayCluster": "rayclusters", "RayCronJob": "raycronjobs"}
SCRIPTS = "/opt/corpus-asr/pipelines"  # in the image

# Of metadata the definitions say that it is an object, and Kubernetes knows the rest.
METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$"},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


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


@cache
def validator(kind: str) -> Draft202012Validator:
    path = REPOSITORY / "tests" / "data" / "kuberay" / f"ray.io_{KINDS[kind]}.json.gz"
    schema = json.loads(gzip.decompress(path.read_bytes()))
    schema["properties"].pop("status", None)  # the operator's to write
    schema["properties"]["metadata"] = METADATA
    return Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(child) for child in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: strict(child) for name, child in value.items()}
        if key == "properties"
        else strict(value)
        for key, value in schema.items()
    }
    keeps_unknown = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if "properties" in schema and "additionalProperties" not in schema and not keeps_unknown:
        closed["additionalProperties"] = False
    return closed


def problems(document: dict[str, Any]) -> list[str]:
    errors = validator(document["kind"]).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def test_kuberay_knows_every_field() -> None:
    for name in RAY_FILES:
        assert resource(name)["apiVersion"] == "ray.io/v1"
        assert problems(resource(name)) == [], name


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the template of each pod of a document, that of a submitter as well."""
    if isinstance(value, dict) and "containers" in value.get("spec", {}):
        yield value
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for child in children:
            yield from pods(child)


def test_pods_get_no_token_write_into_volumes_alone_and_name_their_image_by_digest() -> None:
    many_pods = [pod for name in (*RAY_FILES, ONE_MACHINE) for pod in pods(documents(name))]
    assert len(many_pods) == 4 + 4 + 4 + 1  # rayjob, nightly: with their submitters
    for pod in many_pods:
        spec = pod["spec"]
        (only,) = spec["containers"]
        assert spec["automountServiceAccountToken"] is False
        user = spec["securityContext"]
        assert (user["runAsNonRoot"], user["runAsUser"]) == (True, USER)
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        empty = {each["name"] for each in spec["volumes"] if each.get("emptyDir") is not None}
        written = {each["mountPath"] for each in only["volumeMounts"] if each["name"] in empty}
        assert {"/tmp", HOME} <= written
        assert re.fullmatch(r"[\w./:-]+@sha256:[\w-]+", only["image"])
        assert pod["metadata"]["labels"] == {"app": "corpus-asr"}
    (account, policy) = documents("access.yaml")
    assert account["automountServiceAccountToken"] is False
    assert policy["spec"]["podSelector"] == {"matchLabels": {"app": "corpus-asr"}}


def test_only_the_autoscaler_may_speak_to_kubernetes() -> None:
    (options, head, *workers) = (
        cluster_of("raycluster.yaml")["autoscalerOptions"],
        *groups("raycluster.yaml"),
    )
    named = {each["name"]: each["mountPath"] for each in options["volumeMounts"]}
    assert named["token"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    (token,) = (each for each in head["template"]["spec"]["volumes"] if each["name"] == "token")
    names = [next(iter(each)) for each in token["projected"]["sources"]]
    assert names == ["serviceAccountToken", "configMap", "downwardAPI"]
    assert options["securityContext"] == container(head)["securityContext"]
    for group in (head, *workers):
        assert "token" not in [each["name"] for each in container(group)["volumeMounts"]]


def test_others_reach_a_status_and_pods_reach_stores() -> None:
    _, policy = documents("access.yaml")
    spec = policy["spec"]
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert spec.keys() == {"podSelector", "policyTypes", "ingress", "egress"}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    mine = [{"podSelector": spec["podSelector"]}]
    # A rule without `from`, or without ports for others, would open Ray's ports.
    own, *others = spec["ingress"]
    assert own == {"from": mine}
    assert [each["port"] for rule in others for each in rule["ports"]] == [8265]
    assert all("podSelector" in peer for rule in others for peer in rule["from"])
    own, *others = spec["egress"]
    assert own == {"to": mine}
    assert [[each["port"] for each in rule["ports"]] for rule in others] == [[53, 53], [443, 6443]]
    everywhere = [peer["ipBlock"] for peer in others[-1]["to"]]
    assert [each["except"] for each in everywhere] == [["169.254.0.0/16"], ["fe80::/10"]]


def entrypoints() -> list[str]:
    """Return every command that a manifest or the guide has run on a cluster."""
    found = [resource("rayjob.yaml")["spec"], resource("nightly.yaml")["spec"]["jobTemplate"]]
    shown = re.findall(r"-- (python /opt.+)", (FOLDER / "raycluster.yaml").read_text() + GUIDE)
    assert shown
    return [*(spec["entrypoint"] for spec in found), *shown]


def test_commands_and_their_files_exist() -> None:
    config_maps = {
        found["metadata"]["name"]: found["data"]
        for name in RAY_FILES
        for found in documents(name)
        if found["kind"] == "ConfigMap"
    }
    mounted = set()
    for name in RAY_FILES:
        head = groups(name)[0]
        (mount,) = (found for found in container(head)["volumeMounts"] if found["name"] == "job")
        (volume,) = (v for v in head["template"]["spec"]["volumes"] if v["name"] == "job")
        keys = config_maps[volume["configMap"]["name"]]
        mounted |= {f"{mount['mountPath']}/{key}" for key in keys}
    for command in entrypoints():
        python, script, file, *options = shlex.split(command, comments=True)
        assert (python, script.rpartition("/")[0]) == ("python", SCRIPTS)
        source = (REPOSITORY / "pipelines" / Path(script).name).read_text()
        assert all(f'"{option}"' in source for option in options)
        assert file in mounted
    assert f"\nCOPY pipelines {SCRIPTS}\n" in DOCKERFILE


@pytest.mark.parametrize("name", RAY_FILES)
def test_a_run_that_is_told_to_end_has_the_time(name):
    head, *workers = groups(name)
    *_, ask = container(head)["lifecycle"]["preStop"]["exec"]["command"]
    assert (
        f"run='[^ ]*python[0-9.]* {SCRIPTS}/.*'; pkill -TERM -xf \"$run\"; while pgrep -xf" in ask
    )
    (wait,) = container(head)["env"]
    assert wait["name"] == "RAY_JOB_STOP_WAIT_TIME_S"
    grace_s = head["template"]["spec"]["terminationGracePeriodSeconds"]
    assert 2 * GRACE_S < int(wait["value"]) < grace_s
    for group in workers:
        command, seconds = container(group)["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        assert GRACE_S < int(seconds) < group["template"]["spec"]["terminationGracePeriodSeconds"]


SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|\bhf_\w{20}|://[^/\s]+:[^/\s]+@"
    r"|^kind: Secret$|name: \S*(?:SECRET|TOKEN|PASSWORD|KEY)[^\s,]*,?\s+value:",
    re.MULTILINE | re.IGNORECASE,
)


def test_no_file_holds_a_secret() -> None:
    for path in FOLDER.iterdir():
        assert SECRET_VALUE.findall(path.read_text()) == [], path
