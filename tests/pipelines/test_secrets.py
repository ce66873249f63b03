"""Credentials planted in addresses, settings and environment come out nowhere."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.config.run import RunConfig
from corpus_asr.config.storage_options import parsed
from corpus_asr.pipelines.driver import run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import StoreOptions, list_objects, read_bytes
from corpus_asr.storage.stores.store import RetryPolicy
from tests.support.audio import tone, wav_bytes
from tests.support.corpora import CLIPS, job, outcomes_in, segments_in, tiny_model
from tests.support.stores import (
    FaultyStore,
    WebServer,
    environment,
    faulty_store,
    s3_server,
    web_server,
)
from tests.support.tables import rows_of

pytestmark = pytest.mark.long

SECRET = "pl4nted"
PLANTED = {
    "AWS_ACCESS_KEY_ID": f"{SECRET}-id",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-key",
    "AWS_SESSION_TOKEN": f"{SECRET}-token",
    "AWS_EC2_METADATA_DISABLED": "true",
    "HF_TOKEN": f"{SECRET}-hub",
}


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(RetryPolicy, "wait_s", lambda *args, **options: 0.001)
    with web_server() as server, environment(PLANTED):
        yield server


def signed(web: WebServer, name: str) -> list[str]:
    """Return an address of a file in each form that gives access."""
    url = web.url(name)
    with_user = url.replace("://", f"://user:{SECRET}-password@")
    return [
        f"{url}?X-Amz-Credential={SECRET}-id&X-Amz-Signature={SECRET}-sig",
        f"{url}?v=1&sv=2&se=3&sig={SECRET}-azure",
        f"{with_user}?v=2&token={SECRET}-token",
    ]


def manifest(folder: Path, web: WebServer) -> Path:
    """Name readable, missing, broken, refused and unusable recordings, all with credentials."""
    web.files["good.wav"] = wav_bytes(tone(1.0), rate_hz=16_000)
    web.files["broken.wav"] = b"<html>not audio</html>"
    web.redirects["away.wav"] = f"http://user:{SECRET}-away@169.254.169.254/x?sig={SECRET}-away"
    uris = [uri for name in ("good.wav", "missing.wav", "broken.wav") for uri in signed(web, name)]
    uris += [
        signed(web, "away.wav")[0],
        signed(web, "good.wav")[0].replace("127.0.0.1", "localhost"),
        f"http://user:{SECRET}-dead@127.0.0.1:9/dead.wav?sig={SECRET}-dead",
        f"ftp://user:{SECRET}-port@host:port/x.wav",
        f"quux://user:{SECRET}-quux@host/x.wav",
    ]
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(json.dumps({"uri": uri, "page": uri}) for uri in uris))
    return path


def everything_in(folder: Path) -> str:
    """Return all that a folder holds as one text, tables decoded."""
    texts = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            texts.append(f"{path.name}\n{data.decode('utf-8', 'replace')}")
            if path.suffix == ".parquet":
                texts.append(str(pq.read_table(path).to_pylist()))
    return "\n".join(texts)


def test_no_output_of_a_run_holds_a_credential(
    web: WebServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = {"manifest": str(manifest(tmp_path, web)), "allow_hosts": ["127.0.0.1"]}
    model = tiny_model(tmp_path / "checkpoint")
    config = job(tmp_path, model, tmp_path / "output", source=source)
    web.faults.append("503")
    messages = io.StringIO()
    with caplog.at_level(logging.DEBUG, logger="corpus_asr"):
        summary = run(config, local=True, progress=messages)
    assert summary.listed == 14
    rows = rows_of(OutputStore(config.output.uri).outcomes())
    kinds = Counter(row["error_kind"] for row in rows if row["status"] == "failed")
    assert kinds.pop("not_audio") == kinds.pop("not_found") == 3
    assert kinds == {"refused_host": 2, "fetch": 1, "unsupported_scheme": 2}
    report = CliRunner().invoke(app, ["report", config.output.uri])
    assert report.exit_code == 0, report.output
    found = everything_in(Path(config.output.uri))
    assert "good.wav" in found
    assert "missing.wav" in found
    for place in (found, messages.getvalue(), caplog.text, report.output, str(summary)):
        assert SECRET not in place


@pytest.mark.parametrize("key", ["source", "output"])
def test_no_error_message_holds_a_credential(web: WebServer, tmp_path: Path, key: str) -> None:
    # A store that answers nothing but errors, behind an address that holds a password.
    endpoint_url = web.endpoint_url.replace("://", f"://user:{SECRET}-password@")
    stores: dict[str, dict[str, Any]] = {
        "source": {"uri": "s3://bucket/in"},
        "output": {"uri": f"s3://user:{SECRET}-inside@bucket/out"},
    }
    stores[key]["storage_options"] = {"endpoint_url": endpoint_url}
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(stores | {"model": {"checkpoint": str(tmp_path)}}))
    RunConfig.model_validate(json.loads(path.read_text()))
    for command in (["plan", str(path)], ["run", str(path), "--local"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code != 0
        assert SECRET not in done.output
    typo = CliRunner().invoke(app, ["plan", str(path), "--set", f"sauce.x={endpoint_url}"])
    assert "unknown key" in typo.output
    assert SECRET not in typo.output


VARIABLES = {
    "SOURCE_KEY": f"{SECRET}-source-id", "SOURCE_SECRET": f"{SECRET}-source-key",
    "OUTPUT_KEY": f"{SECRET}-output-id", "OUTPUT_SECRET": f"{SECRET}-output-key",
}  # fmt: skip


@pytest.fixture(scope="module")
def vendors() -> Iterator[tuple[FaultyStore, FaultyStore]]:
    """Two stores, each of which knows its own account alone, and neither that of the environment.

    The first wants who asks to pay, the second encryption and, for retention, checksums.
    """
    with (
        s3_server() as server,
        faulty_store(server.endpoint_url, {}, seed=1) as source,
        faulty_store(server.endpoint_url, {}, seed=1) as output,
        environment(PLANTED | VARIABLES),
    ):
        server.make_bucket("talks")
        server.make_bucket("texts")
        server.put("talks", "good.wav", wav_bytes(tone(1.0), rate_hz=16_000))
        server.put("talks", "broken.wav", b"<html>not audio</html>")
        server.make_bucket("clips")
        for clip in CLIPS.iterdir():
            server.put("clips", clip.name, clip.read_bytes())
        server.put("clips", "broken.wav", b"<html>not audio</html>")
        source.accounts, source.requester_pays = {VARIABLES["SOURCE_KEY"]}, True
        output.accounts, output.object_lock = {VARIABLES["OUTPUT_KEY"]}, True
        output.wanted = {"x-amz-server-side-encryption": "AES256"}
        yield source, output


def job_of(vendors: tuple[FaultyStore, FaultyStore], folder: Path, model: Path) -> Path:
    source, output = vendors
    path = folder / "job.yaml"
    values = {
        "source": {
            "uri": "s3://talks",
            "storage_options": {
                "key": "${SOURCE_KEY}", "secret": "${env:SOURCE_SECRET}",
                "endpoint_url": source.endpoint_url, "requester_pays": True,
            },
        },
        "output": {
            "uri": "s3://texts/run",
            "max_failed_fraction": 1.0,
            "storage_options": {
                "key": "${OUTPUT_KEY}", "secret": "${OUTPUT_SECRET}",
                "endpoint_url": output.endpoint_url,
                "s3_additional_kwargs": {"ServerSideEncryption": "AES256"},
            },
        },
        "model": {"checkpoint": str(model)},
        "extract": {"part_s": 30, "workers": 1},
        "decoding": {"temperature": 0.0, "logprob_threshold": None, "no_speech_threshold": None},
    }  # fmt: skip
    path.write_text(json.dumps(values))
    return path


def reached(output: FaultyStore) -> StoreOptions:
    """Return how the bucket of the output is read."""
    account = {"key": VARIABLES["OUTPUT_KEY"], "secret": VARIABLES["OUTPUT_SECRET"]}
    return replace(output.options, storage=parsed(account))


def kept_in(output: FaultyStore) -> str:
    """Return all that is in the bucket of the output, as one text."""
    options = reached(output)
    names = [uri for uri, _, _ in list_objects("s3://texts", options)]
    assert any(name.endswith("_run/config.json") for name in names)
    objects = {name: read_bytes(name, options) for name in names}
    tables = [
        str(pq.read_table(io.BytesIO(data)).to_pylist())
        for name, data in objects.items()
        if name.endswith((".parquet", ".rows"))
    ]
    return "\n".join(
        [*names, *(data.decode("utf-8", "replace") for data in objects.values()), *tables]
    )


def test_options_of_two_stores_serve_a_run_and_are_kept_nowhere(
    vendors: tuple[FaultyStore, FaultyStore],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = job_of(vendors, tmp_path, tiny_model(tmp_path / "checkpoint"))
    invoke = CliRunner().invoke
    with caplog.at_level(logging.DEBUG, logger="corpus_asr"):
        planned = invoke(app, ["plan", str(path)])
        assert planned.exit_code == 0, planned.output
        done = invoke(app, ["run", str(path), "--local"])
        assert done.exit_code == 0, done.output
        again = invoke(app, ["run", str(path), "--local"])
        assert again.exit_code == 0, again.output
    options = ["--storage-option", f"endpoint_url={vendors[1].endpoint_url}",
               "--storage-option", "key=${OUTPUT_KEY}"]  # fmt: skip
    monkeypatch.setenv(
        "CORPUS_ASR_STORAGE_OPTIONS",
        f"endpoint_url={vendors[1].endpoint_url} key=${{OUTPUT_KEY}} secret=${{env:OUTPUT_SECRET}} "
        "s3_additional_kwargs.ServerSideEncryption=AES256",
    )
    options += ["--storage-option", "secret=${env:OUTPUT_SECRET}"]
    page = tmp_path / "page.html"
    others = [
        invoke(app, [*options, "status", "s3://texts/run"]),
        invoke(app, ["show", "s3://texts/run"]),
        invoke(app, ["report", "s3://texts/run", "--html", str(page),
                     "--audio-storage-option", "key=${SOURCE_KEY}",
                     "--audio-storage-option", "secret=${SOURCE_SECRET}"]),
        invoke(app, ["status", str(tmp_path / "none")]),
    ]  # fmt: skip
    assert "found no _run/" in " ".join(others.pop().output.split())  # options are of stores alone
    for each in others:
        assert each.exit_code == 0, each.output
    kept = kept_in(vendors[1])
    assert '"secret": "***"' in kept
    assert "good.wav" in kept
    printed = [each.output for each in (planned, done, again, *others)]
    assert 'secret: "***"' in planned.output or '"secret": "***"' in planned.output
    for place in (kept, page.read_text(), caplog.text, *printed):
        assert SECRET not in place
    # The recordings that the page plays were read with what the run recorded, and the keys.
    assert not any(store.injected.total() for store in vendors)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"source.storage_options.secrt={SECRET}", "unexpected keyword argument 'secrt'"),
        (f"source.storage_options={SECRET}", "found a single value, expected options by name"),
        (f"source.storage_options={{secret: {SECRET}", "--set source.storage_options"),
        (f"source.storage_options.key.x={SECRET}", "key is a single value"),
        ("source.storage_options.key=${NOT_THERE}", "environment variable NOT_THERE is not set"),
        (f"sauce.storage_options.key={SECRET}", "sauce: unknown key"),
        ("source.uri=/srv", "source.storage_options: found local files"),
    ],
)  # fmt: skip
def test_no_message_about_options_holds_one(
    vendors: tuple[FaultyStore, FaultyStore], tmp_path: Path, override: str, message: str
) -> None:
    path = job_of(vendors, tmp_path, tiny_model(tmp_path / "checkpoint"))
    done = CliRunner().invoke(app, ["plan", str(path), "--set", override])
    assert done.exit_code != 0
    assert message in " ".join(done.output.split())
    assert SECRET not in done.output


def test_a_line_of_yaml_that_is_none_is_shown_without_its_secret(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"source:\n  storage_options:\n    secret: {SECRET}: x\n")
    done = CliRunner().invoke(app, ["plan", str(path)])
    assert "line 3" in done.output
    assert SECRET not in done.output


@pytest.mark.ray
def test_a_run_on_ray_gives_the_rows_of_this_process_and_keeps_no_option(
    vendors: tuple[FaultyStore, FaultyStore], tmp_path: Path
) -> None:
    path = job_of(vendors, tmp_path, tiny_model(tmp_path / "checkpoint"))
    command = ["run", str(path), "--set", "source.uri=s3://clips",
               "--set", "decoding.word_timestamps=true", "--set"]  # fmt: skip
    here = CliRunner().invoke(app, [*command, "output.uri=s3://texts/here", "--local"])
    assert here.exit_code == 0, here.output
    # Short, since the paths of its sockets are.
    with tempfile.TemporaryDirectory(prefix="r") as session:
        # In a process of its own: Ray's native code speaks once in each.
        done = subprocess.run(
            [sys.executable, "-m", "corpus_asr", *command, "output.uri=s3://texts/ray"],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
            env=os.environ | {"RAY_TMPDIR": session, "RAY_enable_export_api_write": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        logs = [file for file in Path(session).rglob("*") if file.is_file()]
        assert logs
        assert not [file for file in logs if SECRET.encode() in file.read_bytes()]
    assert SECRET not in done.stdout + done.stderr
    assert SECRET not in kept_in(vendors[1])
    ours = r"(extract|transcribe|limit): |\d of 5 files, \d failed; "
    assert [line for line in done.stderr.splitlines() if not re.match(ours, line)] == []
    assert "5 of 5 files, 1 failed; " in done.stderr.splitlines()[-1]
    stores = [OutputStore(f"s3://texts/{name}", options=reached(vendors[1]))
              for name in ("here", "ray")]  # fmt: skip
    segments, segments_on_ray = map(segments_in, stores)
    assert {row[0] for row in segments} >= {"english.wav", "longer.mp3"}
    assert segments_on_ray == segments
    outcomes, outcomes_on_ray = map(outcomes_in, stores)
    assert outcomes_on_ray.keys() == outcomes.keys()
    varying = {"run_id", "begun_by", "decode_s", "transcribe_s"}
    for key, row in outcomes.items():
        for name in row.keys() - varying:
            assert outcomes_on_ray[key][name] == pytest.approx(row[name], abs=1e-6), (key, name)
