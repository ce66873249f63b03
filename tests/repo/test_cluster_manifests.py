"""The manifests of configs/cluster: no unknown field, and sizes that the runtime agrees with."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import typer
import yaml

from corpus_asr.cli.main import app
from corpus_asr.runtime import resources as sizes
from corpus_asr.runtime.resources import resolve_resources
from corpus_asr.runtime.shutdown import DRAIN_S, GRACE_S
from tests.support.custom_resources import StrictSchema
from tests.support.manifests import (
    FOLDER,
    KINDS,
    RAY_FILES,
    REPOSITORY,
    UniqueKeys,
    cluster_of,
    container,
    documents,
    groups,
    job,
    limit,
    nodes,
    quantity,
    resource,
    shape,
    store_bytes,
)

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M))
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
GUIDE = (REPOSITORY / "docs" / "clusters.md").read_text()
DAY_S = 24 * 3600
ONE_MACHINE = "nightly-one-machine.yaml"


# Against KubeRay's own schemas.


@pytest.fixture(scope="session")
def schemas() -> dict[str, StrictSchema]:
    folder = REPOSITORY / "tests" / "data" / "kuberay"
    return {
        kind: StrictSchema.of_file(folder / f"ray.io_{plural}.json.gz")
        for kind, plural in KINDS.items()
    }


@pytest.mark.parametrize("name", RAY_FILES)
def test_kuberay_knows_every_field(name, schemas):
    found = resource(name)
    assert found["apiVersion"] == "ray.io/v1"
    assert schemas[found["kind"]].problems(found) == []


def put(document: Any, path: str, value: Any) -> None:
    *above, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    for key in above:
        document = document[key]
    document[last] = value


CLUSTER, CRON = "spec/rayClusterSpec", "spec/jobTemplate/rayClusterSpec"
GPU_POD = f"{CLUSTER}/workerGroupSpecs/1/template/spec"


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("rayjob.yaml", "spec/shutdownAfterJobFinish", True),
        ("rayjob.yaml", "spec/ttlSecondsAfterFinished", "600"),
        ("rayjob.yaml", "metadata/label", {"a": "b"}),
        ("rayjob.yaml", f"{CLUSTER}/headGroupSpec/rayStartParams/num-cpus", 0),
        ("rayjob.yaml", f"{CLUSTER}/authOptions/mode", "password"),
        ("rayjob.yaml", f"{CLUSTER}/workerGroupSpecs/1/replica", 4),
        ("rayjob.yaml", f"{GPU_POD}/tolerations/0/operater", "Exists"),
        ("rayjob.yaml", f"{GPU_POD}/containers/0/resources/limits/memory", "26GB"),
        ("rayjob.yaml", f"{GPU_POD}/volumes/0", {"emptyDir": {}}),
        ("raycluster.yaml", "spec/autoscalerOptions/version", "v3"),
        ("raycluster.yaml", "spec/enableInTreeAutoscaler", True),
        ("nightly.yaml", "spec/timezone", "Etc/UTC"),
        ("nightly.yaml", f"{CRON}/headGroupSpec/template/spec/containers/0/lifecycl", {}),
        ("nightly.yaml", "status", {}),
    ],
)
def test_a_wrong_field_or_value_is_refused(name, path, value, schemas):
    found = resource(name)
    put(found, path, value)
    assert len(schemas[found["kind"]].problems(found)) == 1


@pytest.mark.parametrize(
    ("name", "path"),
    [("rayjob.yaml", CLUSTER), ("nightly.yaml", CRON), ("raycluster.yaml", "spec")],
)
def test_what_is_required_is_missed_and_names_come_once(name, path, schemas):
    found = resource(name)
    cluster = found
    for key in path.split("/"):
        cluster = cluster[key]
    pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
    pod["containers"].append(pod["containers"][0])
    del cluster["headGroupSpec"]
    twice, missing = schemas[found["kind"]].problems(found)
    assert "ray-worker" in twice
    assert "headGroupSpec" in missing


def test_nights_never_overlap(schemas):
    """By `concurrencyPolicy: Forbid` once KubeRay knows it; by deadline and lock until then."""
    nightly = resource("nightly.yaml")["spec"]
    known = schemas["RayCronJob"].knows("spec", "concurrencyPolicy")
    assert nightly.get("concurrencyPolicy") == ("Forbid" if known else None)


# Without them.


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_every_document_is_of_a_kind_known_here(path):
    for found in documents(path.name):
        if found["kind"] in KINDS:
            assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
            continue
        version, fields = {
            "ConfigMap": ("v1", {"data"}),
            "ServiceAccount": ("v1", set()),
            "CronJob": ("batch/v1", {"spec"}),
        }[found["kind"]]
        assert found["apiVersion"] == version
        assert set(found) == {"apiVersion", "kind", "metadata"} | fields
        assert set(found["metadata"]) <= {"name", "annotations"}


def test_a_key_that_comes_twice_is_refused():
    with pytest.raises(AssertionError, match="comes twice"):
        yaml.load("a: 1\nb: 2\na: 3\n", Loader=UniqueKeys)


@pytest.mark.parametrize("name", RAY_FILES)
def test_images_are_this_version_for_the_device(name):
    for group in groups(name):
        device = "cuda" if limit(group, "nvidia.com/gpu") else "cpu"
        tag = container(group)["image"].rpartition("/")[2]
        assert tag == f"{PROJECT['name']}:{PROJECT['version']}-{device}"
    assert cluster_of(name)["rayVersion"] == PINS["ray"]


@pytest.mark.parametrize("text", [DOCKERFILE, GUIDE], ids=["Dockerfile", "guide"])
def test_tags_shown_are_those_of_the_manifests(text):
    tags = set(re.findall(r"\bcorpus-asr:([\w.-]+)", text))
    assert tags == {f"{PROJECT['version']}-{device}" for device in ("cpu", "cuda")}


def entrypoints() -> list[str]:
    """Return every command that a manifest or the guide has run on a cluster."""
    found = [resource("rayjob.yaml")["spec"], resource("nightly.yaml")["spec"]["jobTemplate"]]
    shown = re.findall(r"-- (corpus-asr run .+)", (FOLDER / "raycluster.yaml").read_text() + GUIDE)
    assert shown
    return [*(spec["entrypoint"] for spec in found), *shown]


@pytest.mark.parametrize("command", entrypoints())
def test_commands_and_their_files_exist(command):
    program, subcommand, file, *options = shlex.split(command, comments=True)
    assert program in PROJECT["scripts"]
    known = typer.main.get_command(app).commands[subcommand].params  # type: ignore[attr-defined]
    assert set(options) <= {option for parameter in known for option in parameter.opts}
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
    assert file in mounted


@pytest.mark.parametrize("name", RAY_FILES)
def test_the_job_loads_and_joins_the_cluster_it_is_started_in(name, tmp_path):
    assert job(name, tmp_path).cluster.address == "auto"


@pytest.mark.parametrize("name", RAY_FILES)
def test_the_head_takes_no_work(name):
    head = groups(name)[0]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["rayStartParams"]["num-gpus"] == "0"


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_get_what_they_ask_for_and_hold_their_object_store(name):
    for group in groups(name):
        asked = container(group)["resources"]
        assert asked["requests"] == asked["limits"]
        pod = group["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container(group)["volumeMounts"]}
        shm = {volume["name"]: volume for volume in pod["volumes"]}["shm"]["emptyDir"]
        assert mounts["shm"] == "/dev/shm"
        assert shm["medium"] == "Memory"
        assert store_bytes(group) < quantity(shm["sizeLimit"]) < limit(group, "memory")


@pytest.mark.parametrize("name", RAY_FILES)
def test_extraction_stays_off_gpus_and_transcription_gets_every_gpu(name, tmp_path):
    config = job(name, tmp_path)
    total_store = sum(store_bytes(group) * group.get("replicas", 1) for group in groups(name))
    found = resolve_resources(config, nodes(name), num_packs=1000, store_bytes=total_store)
    gpus = [group for group in groups(name) if limit(group, "nvidia.com/gpu")]
    extract = [shape(group) for group in groups(name)[1:] if group not in gpus]
    assert (found.transcribe_gpus, found.transcribe_cpus) == (1, 0)
    # Without CPUs to give away, no pod with a GPU can get an extract worker.
    assert {shape(group).cpus for group in gpus} == {0}
    assert found.extract_cpus == 1
    assert found.extract_workers + sizes.SPARE_CPUS == sum(node.cpus for node in extract)
    # A reservation of memory that none can meet would wait for ever.
    assert found.extract_memory_bytes is not None
    assert all(node.memory_bytes >= node.cpus * found.extract_memory_bytes for node in extract)
    # Enough object store that every slot has its part, and the next one ready.
    assert found.parts_in_flight == sizes.PARTS_PER_SLOT * sizes.ASSUMED_SLOTS_GPU


def test_a_run_uses_all_gpus_and_a_job_no_more_than_can_come(tmp_path):
    at_once = sum(node.gpus for node in nodes("rayjob.yaml"))
    for name in ("rayjob.yaml", "nightly.yaml"):
        found = resolve_resources(job(name, tmp_path), nodes(name), num_packs=1000)
        assert found.transcribe_workers == at_once == 4
    most = [g["maxReplicas"] for g in groups("raycluster.yaml") if limit(g, "nvidia.com/gpu")]
    workers = job("raycluster.yaml", tmp_path).transcribe.workers
    assert isinstance(workers, int)
    assert workers <= min(sum(most), most[0])


@pytest.mark.parametrize("name", RAY_FILES)
def test_what_waits_for_the_gpus_fits_where_it_was_made(name):
    """Ray Data fills half of all object stores, and a block stays where it was made until used."""
    _, extract, *gpus = groups(name)
    everything = store_bytes(groups(name)[0]) + store_bytes(extract) * extract["maxReplicas"]
    everything += sum(store_bytes(group) * group["maxReplicas"] for group in gpus)
    assert everything / 2 <= store_bytes(extract) * extract["minReplicas"]


@pytest.mark.parametrize("name", RAY_FILES)
def test_a_run_that_is_told_to_end_has_the_time(name):
    head, *workers = groups(name)
    *_, ask = container(head)["lifecycle"]["preStop"]["exec"]["command"]
    assert "pkill -TERM -x corpus-asr" in ask
    (wait,) = container(head)["env"]
    assert wait["name"] == "RAY_JOB_STOP_WAIT_TIME_S"
    grace_s = head["template"]["spec"]["terminationGracePeriodSeconds"]
    assert 2 * GRACE_S < int(wait["value"]) < grace_s
    for group in workers:
        command, seconds = container(group)["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        assert GRACE_S < int(seconds) < group["template"]["spec"]["terminationGracePeriodSeconds"]


def test_a_job_ends_and_cleans_up(tmp_path):
    single, nightly = (resource("rayjob.yaml")["spec"], resource("nightly.yaml")["spec"])
    night = nightly["jobTemplate"]
    for spec in (single, night):
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] > 0
    # A retry follows a head that could not let go of its lock; a night always takes it over.
    assert single["backoffLimit"] >= 1
    assert "--steal-lock" in single["entrypoint"]
    assert night["backoffLimit"] == 0, "a second try would hide what the first one's exit code says"
    stop_after_h = job("nightly.yaml", tmp_path).nightly.stop_after_h
    assert stop_after_h is not None
    assert 3600 * (stop_after_h + 1) + DRAIN_S < night["activeDeadlineSeconds"] < DAY_S
    assert re.fullmatch(r"\d+ \d+ \* \* \*", nightly["schedule"])


def test_the_nightly_cluster_is_that_of_the_single_run():
    nightly, single = cluster_of("nightly.yaml"), cluster_of("rayjob.yaml")
    secrets = container(nightly["headGroupSpec"])["envFrom"]
    assert secrets.pop() == {"secretRef": {"name": "corpus-asr-webhook", "optional": True}}
    for cluster in (nightly, single):
        (volume,) = (v for v in pod_of_head(cluster)["volumes"] if v["name"] == "job")
        del volume["configMap"]
    assert nightly == single


def test_a_night_on_one_machine_is_that_of_a_gpu_pod(tmp_path):
    (cron,) = (found for found in documents(ONE_MACHINE) if found["kind"] == "CronJob")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    night = cron["spec"]["jobTemplate"]["spec"]
    assert night["backoffLimit"] == 0
    pod = night["template"]["spec"]
    (nightly,) = pod["containers"]
    *_, gpu = groups("rayjob.yaml")
    for key in ("image", "resources", "securityContext"):
        assert nightly[key] == container(gpu)[key]
    of_gpu = gpu["template"]["spec"]
    for key in ("serviceAccountName", "securityContext"):
        assert pod[key] == of_gpu[key]
    assert pod["tolerations"][0] == of_gpu["tolerations"][0]
    assert pod["terminationGracePeriodSeconds"] > 2 * GRACE_S
    config = job(ONE_MACHINE, tmp_path)
    assert nightly["command"] == ["corpus-asr", "nightly", "/etc/corpus-asr/job.yaml"]
    assert [found["mountPath"] for found in nightly["volumeMounts"]] == [
        "/etc/corpus-asr",
        "/dev/shm",
    ]
    assert pod["volumes"][0]["configMap"] == {"name": documents(ONE_MACHINE)[0]["metadata"]["name"]}
    assert config.cluster.address == "local"
    for other in ("source", "model", "output", "nightly"):
        assert getattr(config, other) == getattr(job("nightly.yaml", tmp_path), other)
    assert (
        night["activeDeadlineSeconds"]
        == (resource("nightly.yaml")["spec"]["jobTemplate"]["activeDeadlineSeconds"])
    )


def pod_of_head(cluster: dict[str, Any]) -> dict[str, Any]:
    return cluster["headGroupSpec"]["template"]["spec"]


def test_spot_machines_are_asked_first():
    _, _, spot, on_demand = groups("raycluster.yaml")
    assert spot["priority"] > on_demand["priority"]
    assert resource("raycluster.yaml")["spec"]["autoscalerOptions"]["version"] == "v2"
    assert (spot["minReplicas"], on_demand["minReplicas"]) == (0, 0)
    kinds = [pod["template"]["spec"]["nodeSelector"] for pod in (spot, on_demand)]
    assert [next(iter(kind.values())) for kind in kinds] == ["spot", "on-demand"]


# Secrets, and the image.


SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|\bhf_\w{20}|://[^/\s]+:[^/\s]+@"
)


def walk(value: Any) -> Iterator[dict[str, Any]]:
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for child in children:
            yield from walk(child)


def plain_secrets(found: dict[str, Any]) -> list[str]:
    """Return what ought to come from a Secret and does not."""
    secret_name = re.compile("SECRET|TOKEN|PASSWORD|KEY", re.IGNORECASE)
    names = [str(part["name"]) for part in walk(found) if "name" in part and "value" in part]
    kinds = [found["kind"]] if found["kind"] == "Secret" else []
    return [name for name in names if secret_name.search(name)] + kinds


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_file_holds_a_secret(path):
    assert SECRET_VALUE.findall(path.read_text()) == []
    if path.suffix == ".yaml":
        assert [name for found in documents(path.name) for name in plain_secrets(found)] == []


def test_the_check_for_secrets_sees_them():
    found = resource("rayjob.yaml")
    (head, *_) = (part for part in walk(found) if part.get("name") == "ray-head")
    head["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"})
    assert plain_secrets(found) == ["AWS_SECRET_ACCESS_KEY"]
    assert plain_secrets({"kind": "Secret"}) == ["Secret"]
    assert SECRET_VALUE.search("id: AKIA" + 16 * "A")


@pytest.mark.parametrize("name", RAY_FILES)
def test_nothing_runs_as_root(name):
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    for group in groups(name):
        pod = group["template"]["spec"]["securityContext"]
        assert (pod["runAsNonRoot"], pod["runAsUser"]) == (True, int(user))
        assert container(group)["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_image_is_built_from_files_that_are_there():
    copied = {
        source
        for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    tracked = subprocess.run(
        ["git", "ls-files", *copied], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {path.split("/")[0] for path in tracked} == copied
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert "*" in ignore
    # Everything that the package's metadata and its wheel are made of.
    named = {PROJECT["readme"], *PROJECT["license-files"], "corpus_asr"}
    assert {path.split("/")[0] for path in named} <= copied


def test_the_image_pins_whatever_makes_a_ray_cluster():
    assert PROJECT["optional-dependencies"]["cluster"][0].startswith("ray[default]")
    required = [line for line in metadata.requires("ray") or () if 'extra == "default"' in line]
    names = {re.match(r"[\w.-]+", line)[0] for line in required}  # type: ignore[index]
    pinned = {name.lower().replace("_", "-") for name in PINS}
    assert {name.lower().replace("_", "-") for name in names} - pinned == set()
