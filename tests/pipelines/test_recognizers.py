"""A job with a user's own recognizer: tables, failures of single recordings, and resume."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.pipelines.driver import run
from corpus_asr.pipelines.evaluate import calibrate
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.storage.run_state.run_files import CALIBRATION_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.audio import wav_bytes
from tests.support.corpora import outcomes_in
from tests.support.recognizers import PLANTED
from tests.support.tables import rows_of, run_config, stored_segments, with_section

RATE_HZ = 16_000


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for seconds in (2, 3, 4, 5):
        samples = rng.uniform(-0.3, 0.3, (1, seconds * RATE_HZ)).astype(np.float32)
        (folder / f"{seconds}.wav").write_bytes(wav_bytes(samples, rate_hz=RATE_HZ))
    return folder


def job(recordings: Path, kind: str, **sections: Any) -> RunConfig:
    sections = {"extract": {"vad_filter": False}, **sections}
    config = run_config(recordings, recordings.parent / "out", **sections)
    return with_section(
        config, "model", recognizer=f"tests.support.recognizers:{kind}", checkpoint="my/weights"
    )


def texts(config: RunConfig) -> dict[str, str]:
    rows = rows_of(stored_segments(OutputStore(config.output.uri)))
    return {Path(row["uri"]).stem: row["text"].strip() for row in rows}


def failures(config: RunConfig) -> dict[str, tuple[str, str]]:
    rows = outcomes_in(Path(config.output.uri)).values()
    return {
        Path(row["uri"]).stem: (row["error_kind"], row["error_message"])
        for row in rows if row["error_kind"] is not None
    }  # fmt: skip


@pytest.mark.long
def test_a_job_writes_the_tables_of_any_model(recordings: Path) -> None:
    config = job(recordings, "Untimed")
    summary = run(config, local=True, progress=None)
    assert texts(config) == {"2": "2 s", "3": "3 s", "4": "4 s", "5": "5 s"}
    store = OutputStore(config.output.uri)
    (found,) = {row["model"] for row in rows_of(stored_segments(store))}
    assert found == "tests.support.recognizers:Untimed my/weights"
    assert summary.listed == 4
    assert run(config, local=True, progress=None).processed == 0


@pytest.mark.long
def test_its_confidence_is_calibrated_and_that_of_another_class_is_refused(tmp_path: Path) -> None:
    folder, references = tmp_path / "in", tmp_path / "references.jsonl"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        samples = rng.uniform(-0.3, 0.3, (1, 36 * RATE_HZ)).astype(np.float32)
        (folder / f"{number}.wav").write_bytes(wav_bytes(samples, rate_hz=RATE_HZ))
    config = job(folder, "Planted")
    run(config, local=True, progress=None)
    store = OutputStore(config.output.uri)
    rows = rows_of(stored_segments(store))
    windows = Counter(row["uri"] for row in rows)
    lines = [
        {"uri": uri, "text": " ".join([*PLANTED] * count), "language": "en"}
        for uri, count in windows.items()
    ]
    references.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    calibrate(store.uri, str(references))
    fitted = store.read_json(CALIBRATION_NAME)
    assert fitted["name"].startswith("tests.support.recognizers:Planted my/weights ")
    assert fitted["family"] == "tests.support.recognizers:Planted"
    assert fitted["fitted"]["segments"] == len(rows) >= 200
    assert fitted["fitted"]["brier"] < fitted["fitted"]["brier_before"]
    options: dict[str, Any] = {"calibration": store.uri, "device": "cpu"}
    Transcriber(recognizer="tests.support.recognizers:Planted", **options).close()
    with pytest.raises(ConfigError, match=r"Planted, expected .*Counting; fit one"):
        Transcriber(recognizer="tests.support.recognizers:Counting", **options)
    other = with_section(job(folder, "Counting"), "model", calibration=store.uri)
    other = with_section(other, "output", uri=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"reading the calibration .*Planted, expected"):
        run(other, local=True, progress=None)


def test_one_window_that_raises_is_one_failed_recording(recordings: Path) -> None:
    config = job(recordings, "FailingOnShort")
    config = with_section(config, "output", max_failed_fraction=1.0)
    run(config, local=True, progress=None)
    assert set(texts(config)) == {"3", "4", "5"}
    ((name, (kind, message)),) = failures(config).items()
    assert (name, kind) == ("2", "recognizer")
    assert "raised ValueError: too short for me; correct it" in message


def test_another_version_of_it_is_not_mixed_in(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(recordings, "Untimed")
    run(config, local=True, progress=None)
    monkeypatch.setattr("tests.support.recognizers.Untimed.version", "2")
    with pytest.raises(ConfigError, match="model"):
        run(config, local=True, progress=None)


def test_wrong_settings_are_refused_before_audio_is_read(recordings: Path) -> None:
    for changes, message in (
        ({"recognizer": "nowhere_at_all:Model"}, "importing the recognizer"),
        ({"by_language": {"de": "base"}}, "by_language: found it with"),
        (
            {"recognizer": None, "by_language": {"de": "mine.models:Mine"}},
            r"by_language\.de: found mine\.models:Mine, a class, expected",
        ),
    ):
        config = job(recordings, "Untimed").model_dump()
        config["model"] |= changes
        with pytest.raises((ConfigError, ValueError), match=message):
            run(RunConfig(**config), local=True, progress=None)
    config = job(recordings, "Untimed").model_dump() | {"pipeline": "classify_audio"}
    with pytest.raises(ValueError, match=r"model.recognizer: found a classification"):
        RunConfig(**config)
