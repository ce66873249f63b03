import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.corpora import copy_of, job, outcomes_in, segments_in, tiny_model
from tests.support.tables import rows_of, stored_segments, with_section

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def with_words(config: RunConfig) -> RunConfig:
    return with_section(config, "decoding", word_timestamps=True)


@pytest.fixture(scope="session")
def finished(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A job that was run in this process; its output is not to be changed."""
    config = with_words(job(corpus, model, tmp_path_factory.mktemp("local") / "output"))
    run(config, local=True, progress=None)
    return config


def test_every_recording_is_accounted_for(finished: RunConfig):
    output = Path(finished.output.uri)
    outcomes = outcomes_in(output)
    assert {name for name, _ in outcomes} == {
        "broken.mp3", "english.wav", "german.opus", "longer.mp3", "silence.flac",
    }  # fmt: skip
    assert outcomes["silence.flac", 0]["status"] == "no_speech"
    failed = outcomes["broken.mp3", 0]
    assert failed["status"] == "failed"
    assert failed["error_stage"] == "extract"
    assert failed["error_kind"] == "not_audio"
    assert failed["last_part"]
    spoken = outcomes["english.wav", 0]
    assert spoken["status"] == "ok"
    assert spoken["device"]
    assert spoken["segments_written"] > 0
    assert (output / "_SUCCESS").exists()
    counts = json.loads((output / "run.json").read_text())["counts"]
    assert (counts["listed"], counts["remaining"], counts["failed"]) == (5, 0, 1)


def test_parts_join_without_gaps_and_share_their_language(finished: RunConfig):
    parts = [
        row for (name, _), row in sorted(outcomes_in(Path(finished.output.uri)).items())
        if name == "longer.mp3"
    ]  # fmt: skip
    assert len(parts) > 1
    assert [row["last_part"] for row in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[0]["part_start_s"] == 0.0
    for before, after in itertools.pairwise(parts):
        assert before["part_end_s"] == after["part_start_s"]
    assert len({row["language"] for row in parts if row["status"] == "ok"}) == 1


def test_every_segment_comes_word_by_word_where_words_are_asked_for(finished: RunConfig):
    rows = rows_of(stored_segments(OutputStore(finished.output.uri)))
    assert {Path(row["uri"]).name for row in rows} >= {"english.wav", "longer.mp3"}
    for row in rows:
        words = row["words"]
        assert "".join(word["word"] for word in words) == row["text"]
        assert all(word["start_s"] <= word["end_s"] for word in words)
        assert all(one["start_s"] <= other["start_s"] for one, other in itertools.pairwise(words))
        assert all(0.0 <= word["probability"] <= 1.0 for word in words)


def test_a_finished_job_does_nothing_again_and_loads_neither_ray_nor_torch(
    finished: RunConfig, tmp_path: Path
):
    config = copy_of(finished, tmp_path / "output")
    code = (
        "import sys; from corpus_asr.config.run import RunConfig; "
        "from corpus_asr.pipelines.driver import run; "
        "summary = run(RunConfig.model_validate_json(sys.argv[1]), local=False, progress=None); "
        "assert not {'ray', 'torch'} & set(sys.modules); "
        "print(summary.listed, summary.done, summary.failed, summary.processed)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, config.model_dump_json()],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "4", "1", "0"]
    assert (tmp_path / "output" / "_SUCCESS").exists()
    assert segments_in(tmp_path / "output") == segments_in(Path(finished.output.uri))
