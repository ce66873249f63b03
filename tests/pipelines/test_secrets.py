"""Credentials planted in addresses, settings and environment come out nowhere."""

import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.store import RetryPolicy
from tests.support.audio import tone, wav_bytes
from tests.support.corpora import job, tiny_model
from tests.support.stores import WebServer, environment, web_server
from tests.support.tables import rows_of

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
    assert summary.files == 14
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
    stores = {
        "source": {"uri": "s3://bucket/in"},
        "output": {"uri": f"s3://user:{SECRET}-inside@bucket/out"},
    }
    stores[key]["endpoint_url"] = endpoint_url
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
