"""Hotwords of a job and of single recordings, with the packaged model on real speech."""

import json
from pathlib import Path

import pyarrow.dataset
import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from tests.support.spoken import spoken

pytestmark = pytest.mark.long

INAUGURAL = spoken()["inaugural.flac"].path


def test_a_recording_is_transcribed_with_the_hotwords_of_its_row(tmp_path: Path) -> None:
    rows = [
        {"uri": str(INAUGURAL), "hotwords": [{"phrase": "fellow Amerigans", "weight": 10}]},
        {"uri": str(INAUGURAL.parents[1] / "clips" / "english.wav"), "hotwords": [7]},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "names.txt").write_text("Kubernetes\t0.5\n")
    (tmp_path / "job.yaml").write_text(
        f"source: {{manifest: {tmp_path}/manifest.jsonl}}\n"
        f"decoding: {{hotwords: '@{tmp_path}/names.txt', temperature: [0], beam_size: 1}}\n"
        f"output: {{uri: {tmp_path}/out, max_failed_fraction: 0.5}}\n"
    )
    result = CliRunner().invoke(cli.app, ["run", str(tmp_path / "job.yaml"), "--local"])
    assert result.exit_code == 0, result.output
    segments = pyarrow.dataset.dataset(tmp_path / "out" / "segments").to_table().to_pylist()
    text = "".join(segment["text"] for segment in segments)
    assert "fellow Amerigans" in text
    outcomes = pyarrow.dataset.dataset(tmp_path / "out" / "outcomes").to_table().to_pylist()
    (failed,) = (row for row in outcomes if row["status"] == "failed")
    assert failed["error_kind"] == "bad_hotwords"
    assert "found the phrase 7" in failed["error_message"]
