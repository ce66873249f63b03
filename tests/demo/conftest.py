"""The demo's transcripts: the packaged whisper-tiny.en on the recordings of tests/data/spoken."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.cluster import ray_session
from tests.support.logs import logging_put_back
from tests.support.spoken import REPOSITORY, Sentence
from tests.support.tables import rows_of

__all__ = ["ray_session"]

Heard = dict[str, list[Sentence]]


def run_demo(output: Path, *options: str) -> Heard:
    """Do what `make demo` does first; returns what was heard, by recording."""
    with logging_put_back(), pytest.MonkeyPatch.context() as patched:
        patched.chdir(REPOSITORY)
        patched.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no hub is asked
        command = ["run", "configs/demo.yaml", "--set", f"output.uri={output}", *options]
        done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.output
    heard: Heard = {}
    rows = rows_of(OutputStore(str(output)).segments())
    for row in sorted(rows, key=lambda row: row["start_s"]):
        said = Sentence(row["start_s"], row["end_s"], row["text"])
        heard.setdefault(Path(row["uri"]).name, []).append(said)
    return heard


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tables of the demo are; made by `heard`."""
    return tmp_path_factory.mktemp("demo") / "output"


@pytest.fixture(scope="session")
def heard(output: Path) -> Heard:
    return run_demo(output, "--local")


@pytest.fixture(scope="session")
def transcriber() -> Iterator[Transcriber]:
    with Transcriber.from_pretrained("whisper-tiny.en", dtype="float32") as loaded:
        yield loaded
