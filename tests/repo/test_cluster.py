"""The manifests of configs/cluster and their guide: fields that KubeRay knows, sizes that hold."""

import gzip
import json
import math
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from benchmarks.networks import SHAPES
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.config.load import load_config
from corpus_asr.config.run import RunConfig
from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.runtime import resources as sizes
from corpus_asr.runtime.balance import EXTRACT_RTFX
from corpus_asr.runtime.resources import NodeShape, resolve_resources
from corpus_asr.runtime.shutdown import DRAIN_S, GRACE_S
from corpus_asr.transcription.engine import fitting_slots, predicted_bytes
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "configs" / "cluster"
GUIDE = (REPOSITORY / "docs" / "clusters.md").read_text()
PROSE = " ".join(GUIDE.split())
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
HOME = re.findall(r"--home-dir (\S+)", DOCKERFILE)[0]
PLACEHOLDER = "sha256:REPLACE-BY-DIGEST"
USER = int(re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[0])
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M))
RAY_FILES = ("rayjob.yaml", "raycluster.yaml", "nightly.yaml")
ONE_MACHINE = "nightly-one-machine.yaml"
KINDS = {"RayJob": "rayjobs", "RayCluster": "rayclusters", "RayCronJob": "raycronjobs"}
SCRIPTS = "/opt/corpus-asr/pipelines"  # in the image
UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}
GIBIBYTE = 1024 * MEBIBYTE
DAY_S = 24 * 3600
PART_S = ExtractSettings().part_s
MP3_SPEED = int(EXTRACT_RTFX)  # the slowest mp3 of the benchmark's table

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


# Against KubeRay's own schemas, as `kubectl apply` does: unknown fields are errors.


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


def test_a_wrong_field_or_value_is_refused() -> None:
    gpu_pod = "spec/rayClusterSpec/workerGroupSpecs/1/template/spec"
    for name, path, value in (
        ("rayjob.yaml", "spec/shutdownAfterJobFinish", True),
        ("rayjob.yaml", "spec/ttlSecondsAfterFinished", "600"),
        ("rayjob.yaml", f"{gpu_pod}/tolerations/0/operater", "Exists"),
        ("rayjob.yaml", f"{gpu_pod}/containers/0/resources/limits/memory", "26GB"),
        ("raycluster.yaml", "spec/autoscalerOptions/version", "v3"),
        ("nightly.yaml", "spec/timezone", "Etc/UTC"),
        ("nightly.yaml", "status", {}),
    ):
        document = resource(name)
        found: Any = document
        *above, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        for key in above:
            found = found[key]
        found[last] = value
        assert len(problems(document)) == 1, path


def test_images_are_this_version_for_the_device() -> None:
    for name in RAY_FILES:
        for group in groups(name):
            device = "cuda" if limit(group, "nvidia.com/gpu") else "cpu"
            tag, _, digest = container(group)["image"].rpartition("/")[2].partition("@")
            assert tag == f"{PROJECT['name']}:{PROJECT['version']}-{device}"
            # Of an image that nobody has built yet: no node starts it before it is replaced.
            assert digest == PLACEHOLDER
            assert f"@{PLACEHOLDER}|" in GUIDE
        assert cluster_of(name)["rayVersion"] == PINS["ray"]
    for text in (DOCKERFILE, GUIDE):
        tags = set(re.findall(r"\bcorpus-asr:([\w.-]+)", text))
        assert tags == {f"{PROJECT['version']}-{device}" for device in ("cpu", "cuda")}


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the template of each pod of a document, that of a submitter as well."""
    if isinstance(value, dict) and "containers" in value.get("spec", {}):
        yield value
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for child in children:
            yield from pods(child)


MANY_PODS = [
    (name, pod) for name in (*RAY_FILES, ONE_MACHINE) for found in documents(name)
    for pod in pods(found)
]  # fmt: skip


def test_pods_get_no_token_write_into_volumes_alone_and_name_their_image_by_digest() -> None:
    assert len(MANY_PODS) == 4 + 4 + 4 + 1  # rayjob, nightly: with their submitters
    for name, pod in MANY_PODS:
        spec = pod["spec"]
        (only,) = spec["containers"]
        assert spec["automountServiceAccountToken"] is False, name
        assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (
            True,
            USER,
        )
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        empty = {each["name"] for each in spec["volumes"] if each.get("emptyDir") is not None}
        written = {each["mountPath"] for each in only["volumeMounts"] if each["name"] in empty}
        assert {"/tmp", HOME} <= written, name
        assert re.fullmatch(r"[\w./:-]+@sha256:[\w-]+", only["image"]), name
        assert pod["metadata"]["labels"] == {"app": "corpus-asr"}, name
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


def test_others_reach_a_status_and_metrics_and_pods_reach_stores() -> None:
    _, policy = documents("access.yaml")
    spec = policy["spec"]
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert spec.keys() == {"podSelector", "policyTypes", "ingress", "egress"}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    mine = [{"podSelector": spec["podSelector"]}]
    # A rule without `from`, or without ports for others, would open Ray's ports.
    own, *others = spec["ingress"]
    assert own == {"from": mine}
    assert [each["port"] for rule in others for each in rule["ports"]] == [8265, 8080]
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
def test_the_job_joins_its_cluster_and_the_head_takes_no_work(name, tmp_path):
    assert job(name, tmp_path).cluster.address == "auto"
    start = groups(name)[0]["rayStartParams"]
    assert (start["num-cpus"], start["num-gpus"]) == ("0", "0")


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_get_what_they_ask_for_hold_their_object_store_and_run_nothing_as_root(name):
    for group in groups(name):
        asked = container(group)["resources"]
        assert asked["requests"] == asked["limits"]
        pod = group["template"]["spec"]
        user = pod["securityContext"]
        assert (user["runAsNonRoot"], user["runAsUser"]) == (True, USER)
        assert container(group)["securityContext"]["allowPrivilegeEscalation"] is False
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


def pod_of_head(cluster: dict[str, Any]) -> dict[str, Any]:
    return cluster["headGroupSpec"]["template"]["spec"]


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
    script = f"{SCRIPTS}/archive_nightly.py"
    assert nightly["command"] == ["python", script, "/etc/corpus-asr/job.yaml"]
    paths = ["/etc/corpus-asr", "/dev/shm", "/tmp", HOME]
    assert [found["mountPath"] for found in nightly["volumeMounts"]] == paths
    assert pod["volumes"][0]["configMap"] == {"name": documents(ONE_MACHINE)[0]["metadata"]["name"]}
    assert config.cluster.ray_address() == "local"
    for other in ("source", "model", "output", "nightly"):
        assert getattr(config, other) == getattr(job("nightly.yaml", tmp_path), other)
    assert (
        night["activeDeadlineSeconds"]
        == (resource("nightly.yaml")["spec"]["jobTemplate"]["activeDeadlineSeconds"])
    )


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


def named_values(value: Any) -> list[str]:
    """Return the names of all variables whose values are written out."""
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return []
    is_pair = isinstance(value, dict) and "name" in value and "value" in value
    own = [str(dict(value)["name"])] if is_pair else []
    return own + [name for child in children for name in named_values(child)]


def plain_secrets(document: dict[str, Any]) -> list[str]:
    secret_name = re.compile("SECRET|TOKEN|PASSWORD|KEY", re.IGNORECASE)
    kinds = [document["kind"]] if document["kind"] == "Secret" else []
    return [name for name in named_values(document) if secret_name.search(name)] + kinds


def test_no_file_holds_a_secret() -> None:
    for path in FOLDER.iterdir():
        assert SECRET_VALUE.findall(path.read_text()) == [], path
        if path.suffix == ".yaml":
            assert [name for found in documents(path.name) for name in plain_secrets(found)] == []


def test_the_check_for_secrets_sees_them() -> None:
    found = resource("rayjob.yaml")
    head = found["spec"]["rayClusterSpec"]["headGroupSpec"]
    container(head)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"})
    assert plain_secrets(found) == ["AWS_SECRET_ACCESS_KEY"]
    assert plain_secrets({"kind": "Secret"}) == ["Secret"]
    assert SECRET_VALUE.search("id: AKIA" + 16 * "A")


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
    named = {"README.md", *PROJECT["license-files"], "corpus_asr"}
    assert {path.split("/")[0] for path in named} <= copied


def test_the_image_installs_what_the_package_and_a_cluster_need():
    joined = DOCKERFILE.replace("\\\n", "")  # as the builder joins lines
    (program,) = re.findall(r"python -c '(.*?)'", joined)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    extra = PROJECT["optional-dependencies"]["cluster"]
    assert done.stdout.splitlines() == [*PROJECT["dependencies"], *extra]
    assert "<<" not in DOCKERFILE  # heredocs, which buildah before 1.33 and kaniko do not know


def test_the_image_pins_whatever_makes_a_ray_cluster():
    assert PROJECT["optional-dependencies"]["cluster"][0].startswith("ray[default]")
    required = [line for line in metadata.requires("ray") or () if 'extra == "default"' in line]
    names = {re.match(r"[\w.-]+", line)[0] for line in required}  # type: ignore[index]
    pinned = {name.lower().replace("_", "-") for name in PINS}
    assert {name.lower().replace("_", "-") for name in names} - pinned == set()


# The figures of the guide are what the code calculates.


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the guide's table that begins with this heading."""
    _, _, rest = GUIDE.partition(f"\n| {heading} |")
    assert rest, heading
    body = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def size_of(name: str) -> ModelSize:
    config = SHAPES[name].config()
    return ModelSize(
        layers=config.decoder_layers,
        width=config.d_model,
        inner_width=config.encoder_ffn_dim,
        vocab_size=config.vocab_size,
        tokens=config.max_target_positions,
        positions=config.max_source_positions,
        window_values=config.num_mel_bins * 2 * config.max_source_positions,
        element_bytes=2,
        linear_element_bytes=2,
        window_element_bytes=2,
        weight_bytes=2 * SHAPES[name].network().num_parameters(),
    )


def test_the_memory_of_slots_is_what_the_engine_calculates() -> None:
    encode_batch = encode_batch_on("cuda")
    assert [name for name, *_ in rows("model")] == list(SHAPES)[1:]  # after nano
    for name, *cells in rows("model"):
        size = size_of(name)
        none, one, all_slots = (
            predicted_bytes(size, slots=slots, encode_batch=encode_batch).total
            for slots in (0, 1, 64)
        )
        # Weights, and the copies made of them, are there before memory is asked for slots.
        taken = size.weight_bytes + predicted_bytes(size, slots=0, encode_batch=0).fused_copies
        fitting = [
            fitting_slots(size, free_bytes=gib * GIBIBYTE - taken, encode_batch=encode_batch)
            for gib in (8, 16, 24)
        ]
        expected = [
            round(none / MEBIBYTE),
            round((one - none) / MEBIBYTE, 1),
            round(all_slots / GIBIBYTE, 1),
            *fitting,
        ]
        assert [float(cell) for cell in cells] == expected, name


def test_cores_are_speeds_divided() -> None:
    for speed, *cells in rows("one GPU, x real time (assumed)"):
        for gpus, cell in zip((1, 4, 8), cells, strict=True):
            cores = gpus * int(speed) / MP3_SPEED
            total = math.ceil(cores + sizes.SPARE_CPUS)
            assert cell == f"{cores:.1f} + {sizes.SPARE_CPUS} = {total}", speed


def test_the_figures_in_the_text_are_calculated():
    measured = (REPOSITORY / "benchmarks" / "README.md").read_text()
    speeds = re.findall(r"^\| (mp3|opus).*\| (\d+) \|$", measured, re.MULTILINE)
    mp3, opus = (min(int(x) for k, x in speeds if k == kind) for kind in ("mp3", "opus"))
    assert mp3 == MP3_SPEED
    worker = sizes.EXTRACT_BASE_BYTES + sizes.EXTRACT_COPIES_OF_PART * PART_S * SAMPLE_RATE_HZ * 4
    workers = int(limit(groups("rayjob.yaml")[1], "cpu")) - sizes.SPARE_CPUS
    part = PART_S * sizes.FEATURE_BYTES_PER_S
    parts = sizes.PARTS_PER_SLOT * sizes.ASSUMED_SLOTS_GPU
    gpus = int(sum(node.gpus for node in nodes("rayjob.yaml")))
    share = sizes.STORE_SHARE_AHEAD / sizes.AHEAD_SHARE_IN_FLIGHT
    needed = gpus * parts * part / share / GIBIBYTE
    there = sum(
        store_bytes(group) * group.get("replicas", 1) / GIBIBYTE for group in groups("rayjob.yaml")
    )
    assert needed < there
    for figure in (
        f"extracts mp3 at {mp3} and opus at {opus} times",
        f"{workers} x {worker / MEBIBYTE:.0f} MiB = {workers * worker / GIBIBYTE:.1f} GiB",
        f"{workers} x {MP3_SPEED} = {workers * MP3_SPEED} times real time",
        f"{parts} x {part / MEBIBYTE:.1f} MiB = {parts * part / GIBIBYTE:.2f} GiB",
        f"= {needed:.1f} GiB for {gpus} GPUs",
        f"are {there:g} GiB, half of it {there / 2:g} GiB",
        f"two hours without any result ({parts} parts in flight x {PART_S:g} s / 10 times",
    ):
        assert figure in PROSE, figure
    assert 2 <= parts * PART_S / sizes.SLOWEST_SPEED["gpu"] / 3600 < 2.5
