"""Parakeet in jobs: tables, speakers, what commands make of them, and runs that were killed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.corpora import CLIPS, outcomes_in, redo
from tests.support.killing import tables_of
from tests.support.parakeet import parakeet_checkpoint
from tests.support.tables import rows_of, run_config, stored_segments, with_section

pytestmark = pytest.mark.long

# Matrix products of other batches round in another order.
ROUNDING = 1e-4
SCORES = ("confidence", "avg_logprob", "text_logprob")


def config_of(corpus: Path, kind: str, folder: Path, **sections: Any) -> RunConfig:
    """Return a job with speakers over a corpus, in parts shorter than its recordings."""
    parakeet_checkpoint(kind, folder / "model", words=True, blanks=11.0)
    usual: dict[str, Any] = {
        "model": {"checkpoint": str(folder / "model"), "compute_type": "float32"},
        "extract": {"part_s": 30, "workers": 1},
        "decoding": {"word_timestamps": True, "window_s": 6},
        "speakers": "auto",
    }
    return run_config(corpus, folder / "output", **usual | sections)


# One in the usual run: what differs between heads is tested without a job.
@pytest.fixture(
    scope="module",
    params=["TDT", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("CTC", "RNNT"))],
)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = config_of(CLIPS, request.param, tmp_path_factory.mktemp(request.param))
    run(config, local=True, progress=None)
    return config


def segments(config: RunConfig) -> list[dict[str, Any]]:
    rows = rows_of(stored_segments(OutputStore(config.output.uri)))
    return sorted(rows, key=lambda row: (row["uri"], row["part"], row["segment"]))


def test_every_recording_ends_once_with_words_and_times(finished: RunConfig) -> None:
    outcomes = outcomes_in(Path(finished.output.uri))
    assert {name for name, _ in outcomes} == {path.name for path in CLIPS.iterdir()}
    assert {row["status"] for row in outcomes.values()} == {"ok", "no_speech"}
    assert any(part for _, part in outcomes)
    found = segments(finished)
    assert found
    for row in found:
        outcome = outcomes[Path(row["uri"]).name, row["part"]]
        times = [each for word in row["words"] for each in (word["start_s"], word["end_s"])]
        assert times == sorted(times)
        assert outcome["part_start_s"] <= times[0]
        assert times[-1] <= outcome["part_end_s"]
        assert "".join(word["word"] for word in row["words"]) == row["text"]
        assert row["model"] == finished.model.checkpoint
        assert row["language"] is None


def scores_of(tables: dict[str, list[dict[str, Any]]]) -> Iterator[float]:
    """Take out what depends on rounding, in order."""
    for row in tables["segments"]:
        yield from (row.pop(name) for name in SCORES)
        yield from (word.pop("probability") for word in row["words"])


def check_same(found: RunConfig, expected: RunConfig) -> None:
    """Compare all tables of two runs."""
    ours, theirs = tables_of(found), tables_of(expected)
    scores = list(scores_of(ours))
    assert scores == pytest.approx(list(scores_of(theirs)), rel=ROUNDING)
    assert ours == theirs


def test_what_is_done_again_says_the_same(finished: RunConfig, tmp_path: Path) -> None:
    again = with_section(finished, "output", uri=str(tmp_path / "output"))
    shutil.copytree(finished.output.uri, again.output.uri)
    redo(again, "longer.mp3", 1)
    assert run(again, local=True, progress=None).processed_files == 1
    check_same(again, finished)
