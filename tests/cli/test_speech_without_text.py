"""Detected speech without text: a note of `transcribe`; columns, report and page of a run."""

import json
from pathlib import Path

import pyarrow.dataset
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.report.text import duration
from tests.support.pages import parsed

pytestmark = pytest.mark.long

CLIPS = Path(__file__).parents[1] / "data" / "clips"
# Every window counts as silence, whatever is said.
DEAF = ("--set", "decoding.no_speech_threshold=0", "--set", "decoding.logprob_threshold=0")


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_a_run_s_tables_report_and_page_say_how_much_speech_has_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(
        f"source: {{uri: {CLIPS}}}\noutput: {{uri: out}}\ndecoding: {{language: en}}\n"
    )
    call("run", "job.yaml", "--local", *DEAF)
    for table in ("outcomes", "recordings"):
        rows = pyarrow.dataset.dataset(tmp_path / "out" / table).to_table().to_pylist()
        found = {Path(row["uri"]).name: row for row in rows}
        assert found["silence.flac"]["speech_without_text_s"] is None
        speech_s = found["longer.mp3"]["speech_s"]
        assert found["longer.mp3"]["speech_without_text_s"] == pytest.approx(speech_s, abs=0.05)
    total_s = sum(row["speech_without_text_s"] or 0.0 for row in rows)
    assert f"no text     {duration(total_s)} of the speech" in call("report", "out").stdout
    report = json.loads(call("report", "out", "--json").stdout)
    assert report["statistics"]["speech_without_text_s"] == pytest.approx(total_s, abs=1e-3)
    page = parsed((tmp_path / "out" / "report.html").read_text())
    assert "Speech without text" in page.text
