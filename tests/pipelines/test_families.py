"""Other families than Whisper in jobs: tables, speakers, what is done again, and killed runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.corpora import CLIPS, outcomes_in, redo
from tests.support.killing import COMMIT_EACH, KillableJob, tables_of
from tests.support.parakeet import parakeet_checkpoint
from tests.support.qwen3_asr import qwen3_asr_aligner, qwen3_asr_pair
from tests.support.tables import rows_of, run_config, stored_segments, with_section

pytestmark = pytest.mark.long

# Matrix products of other batches round in another order.
ROUNDING = 1e-4
SCORES = ("confidence", "avg_logprob", "text_logprob")


def config_of(corpus: Path, kind: str, folder: Path, **sections: Any) -> RunConfig:
    """Return a job with speakers over a corpus, in parts shorter than its recordings."""
    if kind == "Qwen3-ASR":
        qwen3_asr_pair(folder / "model", seed=4, ends=3.0)
        qwen3_asr_aligner(folder / "aligner")
        sections["align"] = {"model": str(folder / "aligner")}
    else:
        parakeet_checkpoint(kind, folder / "model", words=True, blanks=11.0)
    usual: dict[str, Any] = {
        "model": {"checkpoint": str(folder / "model"), "compute_type": "float32"},
        "extract": {"part_s": 30, "workers": 1},
        "decoding": {"word_timestamps": True, "window_s": 6, "temperature": 0.0},
        "speakers": "auto",
    }
    return run_config(corpus, folder / "output", **usual | sections)


# One in the usual run: what differs between heads is tested without a job.
@pytest.fixture(
    scope="module",
    params=[
        "TDT",
        "Qwen3-ASR",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("CTC", "RNNT")),
    ],
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
    assert run(again, local=True, progress=None).processed == 1
    check_same(again, finished)


@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=pytest.mark.ray)])
def test_a_killed_run_is_continued_to_the_same_tables(
    finished: RunConfig, tmp_path: Path, ray: bool
) -> None:
    config = with_section(finished, "output", uri=str(tmp_path / "output"), **COMMIT_EACH)
    job = KillableJob(config, tmp_path / "job", ray=ray, scripted=False)
    with job.started() as process:
        job.wait_for_commits(process, 1)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
    assert job.commits() > 0
    code, printed = job.finish()
    assert code == 0, printed
    check_same(config, finished)


def test_commands_read_its_tables(finished: RunConfig, tmp_path: Path) -> None:
    output = finished.output.uri
    other = tmp_path / "other"
    shutil.copytree(output, other)

    def printed(*command: str) -> str:
        result = CliRunner().invoke(cli.app, list(command))
        assert result.exit_code == 0, result.output
        return result.stdout

    references = str(CLIPS.parent / "clips-references.jsonl")
    found = json.loads(
        printed("evaluate", output, "--references", references, "--against", str(other), "--json")
    )
    assert 0.5 < found["wer"] < 20  # of noise
    printed("export", output, "--to", str(tmp_path / "srt"), "--format", "srt")
    assert len(list((tmp_path / "srt").rglob("*.srt"))) >= 3
    labels = finished.model_dump(mode="json") | {
        "pipeline": "pseudo_label",
        "selection": {"min_avg_logprob": None, "max_compression_ratio": None,
                      "max_words_per_s": None, "max_chars_per_s": None, "max_repeats": None,
                      "min_unique_words": None, "max_word_chars": None, "against": str(other)},
        "dataset": {"uri": str(tmp_path / "dataset")},
    }  # fmt: skip
    (tmp_path / "label.yaml").write_text(json.dumps(labels))
    printed("label", str(tmp_path / "label.yaml"), "--json")
    assert list((tmp_path / "dataset" / "data").glob("*.parquet"))
