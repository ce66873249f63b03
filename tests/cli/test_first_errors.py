"""Mistakes of the first day, made through the command line: one message, what to do, no traceback.

Only the edges of the machine are replaced: the stores and the hub are servers on it.
"""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.runtime import preflight as readiness
from tests.support.checkpoints import tiny_whisper
from tests.support.stores import S3Server, environment, s3_server
from tests.support.tokenizers import tiny_tokenizer


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server, environment(server.environment):
        server.make_bucket("corpus")
        server.put("corpus", "talks/a.wav", b"x" * 100)
        yield server


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job of one file in the current folder, with a checkpoint without weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").write_bytes(b"x" * 100)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "whisper"}')
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "large.pt").touch()
    (tmp_path / "job.yaml").write_text(
        "source: {uri: audio}\nmodel: {checkpoint: model}\noutput: {uri: out}\n"
    )
    return "job.yaml"


def plan(job: str, *overrides: str) -> Result:
    options = [word for override in overrides for word in ("--set", override)]
    return CliRunner().invoke(cli.app, ["plan", job, *options])


def messages(result: Result, *, exit_code: int = 2) -> str:
    """Return the one line that a failed command says."""
    assert result.exit_code == exit_code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("corpus-asr: ")
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source.uri=audoi", r"did you mean {here}/audio?"),
        ("source.uri=audio/b.wav", r"did you mean {here}/audio/a.wav?"),
        ("source.uri=s3:/corpus/talks", "did you mean s3://corpus/talks?"),
        ("source.uri=gs://bucket/x", "pip install gcsfs"),
        ("source.uri=abfs://bucket/x", "pip install adlfs"),
        ("source.uri=s4://bucket/x", "such as s3://, gs:// or abfs://"),
        ("model.checkpoint=model/config.json", "point model.checkpoint at {here}/model if that"),
        ("model.checkpoint=./nowhere", "found no such folder"),
        ("model.checkpoint=bert", "found model_type 'bert', expected one of"),
        ("model.checkpoint=large.pt", "corpus-asr convert"),
    ],
)
def test_a_wrong_address_is_told_with_what_was_meant(
    job: str, tmp_path: Path, override: str, message: str
) -> None:
    assert message.format(here=tmp_path) in messages(plan(job, override))


@pytest.mark.parametrize(
    ("output", "why"), [("job.yaml", "Not a directory"), ("/proc/none", "No such file or")]
)
def test_an_output_that_cannot_be_made_is_found_by_the_check(
    job: str, output: str, why: str
) -> None:
    result = CliRunner().invoke(
        cli.app,
        [
            "plan",
            job,
            "--check",
            "--set",
            f"output.uri={output}",
            "--set",
            "model.checkpoint=whisper-tiny.en",
        ],
    )
    assert f"({why}" in messages(result)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_PROFILE": "nobody"}, "correct AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID and"),
    ],
)
def test_missing_credentials_say_where_they_are_looked_for(
    job: str, s3: S3Server, variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    # Another spelling of the address: another client, without the credentials of the others.
    endpoint = s3.endpoint_url + "/" * (1 + len(variables))
    source = ("source.uri=s3://corpus/talks", f"source.storage_options.endpoint_url={endpoint}")
    assert message in messages(plan(job, *source))


@pytest.mark.usefixtures("s3")
def test_a_wrong_endpoint_is_told_within_seconds(job: str) -> None:
    for endpoint, message in (
        ("http://127.0.0.1:9", "no server answers"),
        ("127.0.0.1:9000", "expected a URL such as http://"),
    ):
        result = plan(
            job, "source.uri=s3://corpus/a", f"source.storage_options.endpoint_url={endpoint}"
        )
        line = messages(result, exit_code=3)  # a store may come up again
        assert message in line
        assert "endpoint_url" in line


def test_rights_that_are_missing_are_named_for_reading_and_for_writing(job: str) -> None:
    with s3_server() as own, environment(own.environment):
        own.make_bucket("closed")
        switch = urllib.request.Request(
            f"{own.endpoint_url}/moto-api/reset-auth", data=b"0", method="POST",
            headers={"Content-Type": "text/plain"},
        )  # fmt: skip
        with urllib.request.urlopen(switch, timeout=10):
            pass
        endpoint = f"storage_options.endpoint_url={own.endpoint_url}"
        read = messages(plan(job, "source.uri=s3://closed/x", f"source.{endpoint}"))
        write = messages(plan(job, "output.uri=s3://closed/x", f"output.{endpoint}"))
    assert "the store does not know this access key; check AWS_ACCESS_KEY_ID" in read
    assert "s3://closed/x" in write


def test_a_hub_that_must_not_be_asked_says_how_to_bring_the_files(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = messages(plan(job, "model.checkpoint=openai/whisper-smal"))
    assert "did you mean openai/whisper-small?" in line
    assert "unset HF_HUB_OFFLINE" in line
    assert "hf download openai/whisper-smal --local-dir" in line
    assert "whisper-tiny.en (English), which needs no network" in line


@pytest.mark.long
def test_plan_checks_output_recording_model_and_memory(
    job: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = Path(__file__).parents[1] / "data" / "clips" / "silence.flac"
    command = ["plan", job, "--check", "--set", f"model.checkpoint={checkpoint}"]
    undecodable = CliRunner().invoke(cli.app, command)
    assert undecodable.exit_code == 3
    assert "corpus-asr: decoding " in undecodable.stderr
    assert not [path for path in Path("out").rglob("*") if path.is_file()]
    # Of real weights: random ones say more in a second than a person in an hour.
    command += ["--set", f"source.uri={silence}", "--set", "transcribe.slots=1"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.stderr
    tried = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("# ")]
    assert tried[-7:] == ["output", "recording", "machines", "model", "speed", "memory", "ready"]
    assert "# speed      not measured: no speech in the decoded audio" in result.stdout
    assert not [path for path in Path("out").rglob("*") if path.is_file()]
    monkeypatch.setattr("corpus_asr.runtime.resources.memory_limit_bytes", lambda: 300 << 20)
    small = CliRunner().invoke(cli.app, command)
    assert small.exit_code == 2
    assert re.search(r"checking memory: found a need of [\d.]+ of 0\.3 GiB", small.stderr)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_tokenizer(folder / "tokenizer")
    return tiny_whisper(folder / "model", tokenizer=folder / "tokenizer")


def test_shared_memory_that_is_too_small_for_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SimpleNamespace(f_blocks=16384, f_frsize=4096)
    monkeypatch.setattr("os.statvfs", lambda _: small)
    assert readiness._shared_memory(64 << 20) == ""
    words = readiness._shared_memory(528 << 20)
    assert "/dev/shm has 64 MiB and Ray wants 528" in words
    assert "--shm-size" in words


def test_a_full_disk_for_help_is_one_line() -> None:
    command = [sys.executable, "-m", "corpus_asr", "--help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
