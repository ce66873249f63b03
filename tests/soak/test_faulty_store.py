"""Whole runs through a store on a bad night end equal, row for row, to runs through a quiet one.

On moto, and on OpenStack Swift, which checks signatures and checksums: CORPUS_ASR_TEST_SWIFT names
a script that starts and stops it, SWIFT_PY a Python that has swift.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.storage.stores.filesystem import StoreOptions, open_store, write_atomic
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes
from tests.support.corpora import tiny_model
from tests.support.killing import tables_of
from tests.support.stores import environment, faulty_store, s3_server
from tests.support.tables import run_config

REPOSITORY = Path(__file__).resolve().parents[2]
SWIFT_PORT = 18480
FILES = 120
RUN_LIMIT_S = 3000.0  # the machine may stop processes for minutes

# A store on a bad night: one request in five is throttled, one in seven fails in another way.
BAD_NIGHT = {
    "slow_down": 0.15, "too_many": 0.05, "internal": 0.02, "reset": 0.02, "lost_answer": 0.02,
    "truncated": 0.03, "slow": 0.02, "expired": 0.01, "changed": 0.01, "no_xml": 0.01,
    "done_500": 0.02,
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * RUN_LIMIT_S)]


def swift_script() -> str:
    script = os.environ.get("CORPUS_ASR_TEST_SWIFT")
    if not script:
        pytest.skip("needs Swift: set CORPUS_ASR_TEST_SWIFT to its script (see CONTRIBUTING.md)")
    return script


def swift_python() -> str:
    python = os.environ.get("SWIFT_PY", "/usr/bin/python3")
    found = subprocess.run([python, "-c", "import swift"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"{python} has no swift: set SWIFT_PY to a Python that has")
    return python


@pytest.fixture(params=["moto", "swift"])
def endpoint_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An S3 server with buckets `corpus`, `calm` and `faulty`; credentials in the environment."""
    if request.param == "moto":
        with s3_server() as server, environment(server.environment):
            yield _with_buckets(server.endpoint_url)
        return
    script = ["bash", swift_script()]
    here = {"SWIFT_PY": swift_python(), "PATH": os.environ["PATH"]}
    started = subprocess.run(
        [*script, "start", str(tmp_path / "swift"), str(SWIFT_PORT)],
        env=here, stdout=subprocess.PIPE, text=True, check=True, timeout=RUN_LIMIT_S,
    )  # fmt: skip
    try:
        said = dict(word.split("=", 1) for word in started.stdout.split() if "=" in word)
        keys = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        with environment(keys | {n: v for n, v in said.items() if n.startswith("AWS")}):
            yield _with_buckets(said["S3_ENDPOINT"])
    finally:
        subprocess.run([*script, "stop", str(tmp_path / "swift")], env=here, check=True)


def _with_buckets(endpoint_url: str) -> str:
    for name in ("corpus", "calm", "faulty"):
        open_store(f"s3://{name}", StoreOptions(endpoint_url=endpoint_url))[0].mkdir(name)
    return endpoint_url


def _fill(endpoint_url: str) -> None:
    """Put tones of a second and more, some of several parts, silence, and one broken file."""
    options = StoreOptions(endpoint_url=endpoint_url)
    for number in range(FILES - 2):
        seconds = 70.0 if number % 40 == 7 else 1.0 + number % 5 / 4
        data = wav_bytes(tone(seconds, hz=200.0 + 5 * number), rate_hz=SAMPLE_RATE_HZ)
        write_atomic(f"s3://corpus/in/{number:03d}.wav", data, options)
    silence = wav_bytes(tone(1.0, amplitude=0.0), rate_hz=SAMPLE_RATE_HZ)
    write_atomic("s3://corpus/in/silent.wav", silence, options)
    write_atomic("s3://corpus/in/broken.wav", b"<html>404</html>", options)


def _run(model: Path, folder: Path, output: str, endpoint_url: str) -> RunConfig:
    """Run the command on the corpus, as a process of its own; return its job."""
    there = {"storage_options": {"endpoint_url": endpoint_url}}
    config = run_config(
        "", "", source={"uri": "s3://corpus/in", **there},
        extract={"part_s": 30, "vad_filter": False},
        model={"checkpoint": str(model), "compute_type": "float32"},
        decoding={"temperature": 0.0, "language": "en", "logprob_threshold": None,
                  "no_speech_threshold": None},
        transcribe={"slots": 8}, output={"uri": output, "max_failed_fraction": 0.05, **there},
    )  # fmt: skip
    job = folder / f"{output.rpartition('/')[2]}.yaml"
    job.write_text(config.model_dump_json())
    done = subprocess.run(
        [str(Path(sys.executable).with_name("corpus-asr")), "run", str(job), "--local"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return config


def test_a_run_on_a_bad_night_equals_an_undisturbed_one(endpoint_url: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    _fill(endpoint_url)
    calm = tables_of(_run(model, tmp_path, "s3://calm/out", endpoint_url))
    statuses = Counter(row["status"] for row in calm["recordings"])
    assert sum(statuses.values()) == FILES
    assert statuses["failed"] == 1
    with faulty_store(endpoint_url, BAD_NIGHT, seed=11, max_in_a_row=4) as faulty:
        config = _run(model, tmp_path, "s3://faulty/out", faulty.endpoint_url)
        met, requests = dict(faulty.injected), faulty.requests
        faulty.rates = {}
        assert tables_of(config) == calm
    refused = met["slow_down"] + met["too_many"]
    assert refused / requests > 0.15, f"throttled {refused} of {requests}"
    assert {"internal", "reset", "lost_answer", "truncated", "slow"} <= set(met)
    sys.stdout.write(f"requests={requests} faults={met} statuses={dict(statuses)}\n")
