"""A run with references is calibrated, and later runs of its model use that."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.confidence import DEFAULT_MODEL, evidence_of
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.storage.run_state.run_files import (
    CALIBRATION_NAME,
    begin_run,
    calibration_for,
    fingerprint,
    read_calibration,
    write_calibration,
)
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import commit, part, results, rows_of, run_config, stored_segments

REVISION = "0123456789abcdef"
SAID = "red green blue white"


def job(folder: Path, **model: Any) -> RunConfig:
    return run_config(folder, folder / "output", model={"checkpoint": "some/model"} | model)


def transcribed(name: str, rng: random.Random) -> dict[str, Any]:
    """Return a part of five segments, whose likely ones are right more often than is claimed."""
    segments = []
    for number in range(5):
        surprise = rng.uniform(0.02, 2.0)
        words = [word if rng.random() > surprise / 2.5 else "x" for word in SAID.split()]
        segments.append(
            {
                "segment": number, "start_s": 2.0 * number, "end_s": 2.0 * number + 2,
                "text": " " + " ".join(words), "tokens": [1] * 4, "language": "en",
                "confidence": 0.2, "text_logprob": -surprise, "no_speech_prob": 0.0,
                "compression_ratio": 1.0, "speech_fraction": 1.0, "task": "transcribe",
            }
        )  # fmt: skip
    return part(name, 0, texts=None, segments=segments, language="en")


def run(
    folder: Path, *, recordings: int = 60, family: str | None = None, **model: Any
) -> OutputStore:
    folder.mkdir(exist_ok=True)
    config = job(folder, **model)
    store = OutputStore(config.output.uri)
    begin_run(store, config, fingerprint(config, REVISION), family=family)
    rng = random.Random(5)
    rows = [transcribed(f"{number}.wav", rng) for number in range(recordings)]
    commit(store, results(*rows), run_id="run", model="some/model", model_revision=REVISION)
    lines = [{"uri": f"/{number}.wav", "text": " ".join([SAID] * 5), "language": "en"}
             for number in range(recordings)]  # fmt: skip
    (folder / "references.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return store


def evaluate(folder: Path, *options: str) -> Any:
    arguments = [str(folder / "output"), "--references", str(folder / "references.jsonl")]
    return CliRunner().invoke(cli.app, ["evaluate", *arguments, "--calibrate", *options])


def test_a_run_is_calibrated_and_a_later_one_uses_it(tmp_path: Path) -> None:
    store = run(tmp_path)
    done = evaluate(tmp_path)
    assert done.exit_code == 0, done.output
    assert "calibration some/model 0123456789abcdef" in " ".join(done.stdout.split())
    assert "in all" in done.stdout
    written = store.read_json(CALIBRATION_NAME)
    assert written["model_revision"] == REVISION
    fitted = written["fitted"]
    assert fitted["recordings"] == 60
    assert fitted["brier"] < 0.25 < fitted["brier_before"]
    calibration = calibration_for(job(tmp_path), store, model_revision=REVISION)
    assert calibration is not None
    commit(
        store, results(transcribed("later.wav", random.Random(1))), run_id="later",
        model="some/model", model_revision=REVISION, calibration=calibration,
    )  # fmt: skip
    rows = rows_of(stored_segments(store))
    earlier = [row for row in rows if row["run_id"] == "run"]
    later = [row for row in rows if row["run_id"] == "later"]
    assert {row["calibration"] for row in earlier} == {"default"}
    assert {round(row["confidence"], 6) for row in earlier} == {0.2}
    assert {row["calibration"] for row in later} == {"some/model 0123456789abcdef"}
    for row in later:
        evidence = evidence_of(row)
        assert evidence is not None
        assert row["confidence"] == pytest.approx(calibration.confidence(evidence), abs=1e-6)


def test_rows_of_other_weights_and_without_evidence_keep_their_confidence(tmp_path: Path) -> None:
    store = run(tmp_path)
    assert evaluate(tmp_path).exit_code == 0
    other = transcribed("other.wav", random.Random(1)) | {"language": "de"}
    bare = part("bare.wav", 0, texts=[" hi"], language="en")
    commit(store, results(other, bare), run_id="later", model="some/model", model_revision=REVISION,
        by_language={"de": ("german", "other-weights")}, calibration=read_calibration(store.uri),
    )  # fmt: skip
    rows = rows_of(stored_segments(store))
    later = [row for row in rows if row["run_id"] == "later"]
    assert {row["calibration"] for row in later} == {DEFAULT_MODEL.name}


@pytest.mark.long
def test_runs_that_cannot_be_calibrated_are_refused(tmp_path: Path) -> None:
    store = run(tmp_path / "few", recordings=6)
    done = evaluate(tmp_path / "few")
    assert done.exit_code == 2
    assert "found 30 scored segments" in done.stderr
    assert "expected 200" in done.stderr
    assert not store.exists(CALIBRATION_NAME)
    store = run(tmp_path / "several", by_language={"de": "german"})
    assert "a run of several models" in evaluate(tmp_path / "several").stderr
    store.remove("_run/config.json")
    assert "found no _run/config.json" in evaluate(tmp_path / "several").stderr


def test_one_of_another_model_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = run(tmp_path)
    assert evaluate(tmp_path).exit_code == 0
    elsewhere = tmp_path / "elsewhere"
    config = job(elsewhere, calibration=store.uri)
    target = OutputStore(config.output.uri)
    with caplog.at_level(logging.WARNING):
        same = calibration_for(config, target, model_revision=REVISION)
        assert not caplog.records
        other = calibration_for(config, target, model_revision="fedcba9876543210")
    assert same == other is not None
    assert "calibration_of_another_model" in caplog.text
    assert calibration_for(job(elsewhere), target, model_revision=REVISION) is None
    assert fingerprint(config, REVISION) == fingerprint(job(elsewhere), REVISION)


def test_one_of_another_family_is_refused(tmp_path: Path) -> None:
    store = run(tmp_path, family="whisper")
    assert evaluate(tmp_path).exit_code == 0
    assert read_calibration(store.uri).family == "whisper"
    config = job(tmp_path / "elsewhere", calibration=store.uri)
    target = OutputStore(config.output.uri)
    assert calibration_for(config, target, model_revision=REVISION, family="whisper") is not None
    message = "found some/model 0123456789abcdef of the family whisper, expected parakeet_tdt"
    with pytest.raises(ConfigError, match=message):
        calibration_for(config, target, model_revision="other", family="parakeet_tdt")
    # Files of before do not say what they were fitted to.
    written = store.read_json(CALIBRATION_NAME)
    del written["family"]
    store.write_json(CALIBRATION_NAME, written)
    assert calibration_for(config, target, model_revision=REVISION, family="parakeet_tdt")


def test_what_is_no_calibration_is_refused(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file, expected one; write it by"):
        read_calibration(str(tmp_path))
    write_calibration(store, DEFAULT_MODEL, fitted={})
    assert read_calibration(str(tmp_path)) == DEFAULT_MODEL
    path = tmp_path / CALIBRATION_NAME
    assert read_calibration(str(path)) == DEFAULT_MODEL
    for text in ('{"name": "x"}', '{"name": "x", "weights": {"a": 1}, "offset": 0}', "[]"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="write it again"):
            read_calibration(str(path))
    path.write_text("nonsense")
    with pytest.raises(CorpusAsrError, match="no valid JSON"):
        read_calibration(str(path))
