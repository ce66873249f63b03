"""`corpus-asr show`: what was said, in order, of which recordings."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import commit, part, results


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A run that is not done: two recordings that speak, one in two parts, one silent, one bad."""
    store = OutputStore(str(tmp_path / "output"))
    german = {"segment": 0, "text": " Guten Tag.", "start_s": 0.5, "end_s": 1.25,
              "tokens": [1], "language": "de", "task": "transcribe", "confidence": 0.9}  # fmt: skip
    commit(
        store,
        results(
            part("talk.mp3", 1, texts=["the end"], last=False),
            part("talk.mp3", 0, texts=["one\n\x1b[2Jtwo"], last=False),
            part("gruss.wav", 0, texts=None, segments=[german]),
            part("still.wav", 0, texts=None, status="no_speech"),
            part("bad.mp3", 0, texts=None, status="failed", error_kind="not_audio"),
        ),
    )
    return store.uri


def show(output: str, *options: str) -> Result:
    done = CliRunner().invoke(cli.app, ["show", output, *options])
    assert done.exit_code == 0, done.output
    return done


def test_transcripts_stand_below_their_names_by_time(output: str) -> None:
    assert show(output).stdout.splitlines() == [
        "/gruss.wav:",
        "[00:00.500 --> 00:01.250] Guten Tag.",
        "/still.wav:",
        "/talk.mp3:",
        "[00:00.000 --> 00:01.000] one [2Jtwo",
        "[00:00.000 --> 00:01.000] the end",
    ]


@pytest.mark.parametrize(
    "options", [("--uri", "*.wav"), ("--language", "german"), ("--min-confidence", "0.5")]
)
def test_what_is_not_asked_for_is_left_out(output: str, options: tuple[str, str]) -> None:
    shown = show(output, *options).stdout
    assert "Guten Tag." in shown
    assert "the end" not in shown


def test_no_output_is_refused(tmp_path: Path) -> None:
    refused = CliRunner().invoke(cli.app, ["show", str(tmp_path / "nothing")])
    assert refused.exit_code == 2
    assert "expected the output folder of a run" in refused.stderr
