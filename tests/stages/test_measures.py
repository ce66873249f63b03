import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from corpus_asr.audio.parts import AudioPart
from corpus_asr.audio.sound_quality import SoundQuality
from corpus_asr.config.extraction import NO_SEGMENTATION, PACKAGED_ENCODER, ExtractSettings
from corpus_asr.errors import ConfigError
from corpus_asr.pipelines import driver
from corpus_asr.schemas import SOUND_COLUMNS
from corpus_asr.speakers.segmentation import Segments
from corpus_asr.speakers.turns import SpeechWindows
from corpus_asr.stages import measures
from corpus_asr.stages.measures import (
    Voices,
    check_measures,
    measure_part,
    measured_columns,
    new_measure,
)
from corpus_asr.stages.transcribe import EngineSpec, TranscribeStage
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip
from tests.support.engines import scripted_engine
from tests.support.tables import extracted, run_config

CLIP = Path(__file__).parents[1] / "data" / "spoken" / "inaugural.flac"
SOUND = "corpus_asr.audio.sound_quality:SoundQuality"
Spans = Sequence[tuple[float, float]]


def reference(kind: type) -> str:
    return f"{__name__}:{kind.__name__}"


class Loudest:
    """The largest sample of each second."""

    name: ClassVar[str] = "loudest"
    columns: ClassVar[Sequence[str]] = ("peak", "at_s")

    def measure(self, samples: np.ndarray, speech: object) -> np.ndarray:
        seconds = len(samples) // SAMPLE_RATE_HZ
        return np.abs(samples[: seconds * SAMPLE_RATE_HZ]).reshape(seconds, -1).max(axis=1)

    @staticmethod
    def over(values: Any, spans: Spans, *, start_s: float) -> Mapping[str, Any]:
        [(first_s, last_s), *_] = spans
        at = int(values[int(first_s) : int(last_s) + 1].argmax())
        return {"peak": values[at], "at_s": start_s + at}


class Raising(Loudest):
    name = "raising"

    def measure(self, samples: np.ndarray, speech: object) -> np.ndarray:
        raise RuntimeError("no GPU, key=s3://user:secret@host/x")


class Writing(Loudest):
    name = "writing"

    def measure(self, samples: np.ndarray, speech: object) -> np.ndarray:
        samples *= 0
        return samples


class TooFew(Loudest):
    name = "too_few"

    @staticmethod
    def over(values: Any, spans: Spans, *, start_s: float) -> Mapping[str, Any]:
        return {"peak": values[: len(spans)].max()}


class NotANumber(Loudest):
    name = "not_a_number"

    @staticmethod
    def over(values: Any, spans: Spans, *, start_s: float) -> Mapping[str, Any]:
        return {"peak": np.float32("nan"), "at_s": 0.0}


class OfWholePartsOnly(Loudest):
    name = "whole"

    @staticmethod
    def over(values: Any, spans: Spans, *, start_s: float) -> Mapping[str, Any]:
        if spans != [(0.25, 0.75)]:
            raise IndexError("a segment")
        return {"peak": 1, "at_s": 0.0}


@pytest.fixture(autouse=True)
def _nothing_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_warned", set())


@pytest.fixture(scope="module")
def audio() -> AudioPart:
    samples = read_clip(CLIP)
    begin = 5 * SAMPLE_RATE_HZ
    speech = ((begin + 8_000, begin + len(samples) - 8_000),)
    return AudioPart(start_sample=begin, samples=samples, speech=speech)


def rows_of(audio: AudioPart, *kinds: type) -> list[dict[str, Any]]:
    return measure_part(
        {reference(kind): new_measure(reference(kind), {}) for kind in kinds}, audio
    )


def transcribed(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what becomes of a part from second 10, with speech from 10.25 to 10.75."""
    spec = EngineSpec(config=run_config("/in", "/out"), device="cpu")
    stage = TranscribeStage(spec, engine_factory=scripted_engine)
    [row] = stage(extracted("a", 1, measured=measured)).to_pylist()
    assert isinstance(row, dict)
    return row


def test_values_of_a_users_measure_are_of_each_segment_and_of_the_speech(audio: AudioPart):
    row = transcribed(rows_of(audio, Loudest))
    seconds = Loudest().measure(audio.samples, None)
    expected = {"loudest": {"peak": float(seconds[0]), "at_s": 10.0}}
    assert json.loads(row["measures"]) == expected
    [segment] = row["segments"]
    assert json.loads(segment["measures"])["loudest"]["at_s"] >= 10.0
    assert transcribed([])["measures"] is None
    assert transcribed([])["segments"][0]["measures"] is None


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Raising, "RuntimeError: no GPU"),
        (Writing, "ValueError: output array is read-only"),
        (TooFew, "ValueError: found the columns ['peak'], expected ['peak', 'at_s']"),
        (NotANumber, "ValueError: Out of range float values are not JSON compliant"),
        (OfWholePartsOnly, "IndexError: a segment"),
    ],
)
def test_what_a_measure_fails_of_is_no_failure_of_the_part_or_of_another_measure(
    audio: AudioPart, kind: type, error: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    sound = measure_part({SOUND: SoundQuality()}, audio)
    for _ in range(3):
        row = transcribed([*rows_of(audio, kind), *sound, *rows_of(audio, Loudest)])
        assert (row["status"], row["error_kind"]) == ("ok", None)
        [segment] = row["segments"]
        assert segment["text"]
        for of in (row, segment):
            assert all(of[name] is not None for name in SOUND_COLUMNS)
            assert json.loads(of["measures"])["loudest"]
        assert kind.name not in json.loads(segment["measures"])  # type: ignore[attr-defined]
        failed = json.loads(row["measures"])[kind.name]  # type: ignore[attr-defined]
        assert [*failed] == ["error"]
        assert failed["error"].startswith(error)
        assert "secret" not in row["measures"]
    warned = [record for record in caplog.records if "measure_failed" in record.getMessage()]
    assert len(warned) == 1


def test_damaged_values_are_a_failure_of_their_measure_alone(audio: AudioPart):
    [sound], [loudest] = measure_part({SOUND: SoundQuality()}, audio), rows_of(audio, Loudest)
    file = io.BytesIO()
    np.save(file, np.ones((3, 7), np.float16))
    damaged = [
        {"values": b""},
        {"values": sound["values"][:-5]},
        {"values": file.getvalue()},
        {"values": None},
        {"reference": "no.such.module:Sound"},
    ]
    for change in damaged:
        row = transcribed([sound | change, loudest])
        assert row["status"] == "ok"
        assert [row[name] for name in SOUND_COLUMNS] == [None] * len(SOUND_COLUMNS)
        assert [row["segments"][0][name] for name in SOUND_COLUMNS] == [None] * len(SOUND_COLUMNS)
        assert [*json.loads(row["measures"])["sound"]] == ["error"]
        assert json.loads(row["measures"])["loudest"]["peak"] > 0.0


def test_voices_and_overlaps_are_in_recording_time(audio: AudioPart):
    voices = Voices(model=PACKAGED_ENCODER, segmentation=NO_SEGMENTATION, pad_s=0.0)
    voices._segmenter = lambda samples, speech: Segments(  # type: ignore[assignment]
        pieces=[*speech], overlaps=[(16_000, 40_000)]
    )
    measured = measure_part({"corpus_asr.stages.measures:Voices": voices}, audio)
    columns = measured_columns(measured, (), (), start_s=5.0)
    windows = SpeechWindows.of_columns(columns)
    assert columns["overlap_spans"] == [{"start_s": 6.0, "end_s": 7.5}]
    assert windows.overlaps == [(6.0, 7.5)]
    expected = voices._embedder(audio.samples, [(8_000, len(audio.samples) - 8_000)])
    np.testing.assert_array_equal(windows.start_s, expected.start_s + 5.0)
    np.testing.assert_array_equal(windows.embeddings, expected.embeddings)
    assert columns["voices"] == expected.embeddings.tobytes()
    assert [span["end_s"] for span in columns["voice_spans"]] == windows.end_s.tolist()
    # A part in which two speak all the time, or say single words, still has voices.
    for segments in (Segments([], [(8_000, 40_000)]), Segments([(9_000, 12_000)], [])):
        voices._segmenter = lambda *_, found=segments: found  # type: ignore[assignment]
        measured = measure_part({"corpus_asr.stages.measures:Voices": voices}, audio)
        columns = measured_columns(measured, (), (), start_s=5.0)
        assert columns["voices"] == expected.embeddings.tobytes()
        assert (columns["overlap_spans"], columns["measures"]) == (None, None)
    silent = measure_part({"corpus_asr.stages.measures:Voices": voices}, AudioPart(
        start_sample=0, samples=np.zeros(SAMPLE_RATE_HZ, np.float32), speech=()
    ))  # fmt: skip
    assert measured_columns(silent, (), (), start_s=0.0)["voice_spans"] == []


class NoName:
    columns = ("a",)


class NotStatic(Loudest):
    def over(self, values: Any, spans: Spans, *, start_s: float) -> Mapping[str, Any]:  # type: ignore[override]
        return {}


class Unmade(Loudest):
    def __init__(self) -> None:
        raise OSError("no weights in /models")


class Sound(Loudest):
    name = "sound"


class Twin(Loudest):
    pass


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (["no_such_package:Measure"], "importing the measure no_such_package:Measure: ModuleNot"),
        ([f"{__name__}:Absent"], "importing the measure .*:Absent: AttributeError: .*install its"),
        ([f"{__name__}:rows_of"], "found <function rows_of .*expected a class"),
        ([reference(NoName)], "found the name None, expected lower-case"),
        ([reference(NotStatic)], "expected measure, and over as static method"),
        ([reference(Unmade)], "making the measure .*:Unmade: OSError: no weights in /models; corr"),
        (
            [reference(Sound)],
            "with the name 'sound', expected a name other than that of corpus_asr",
        ),
        (
            [reference(Loudest), reference(Twin)],
            "expected a name other than that of .*:Loudest; rename",
        ),
    ],
)
def test_a_class_that_is_no_measure_is_refused_before_anything_is_done(
    tmp_path: Path, references: list[str], message: str
):
    config = run_config(tmp_path, tmp_path / "out", model="whisper-tiny.en")
    extract = ExtractSettings(measures=tuple(references))
    with pytest.raises(ConfigError, match=message):
        driver.run(config.model_copy(update={"extract": extract}), local=True)
    assert not (tmp_path / "out").exists()


def test_measures_are_named_once_as_packaged_or_as_a_class():
    for value in ("dnsmos", "loud:", "a.b", "voices"):
        with pytest.raises(ValueError, match="expected sound, fingerprint or package"):
            ExtractSettings(measures=(value,))
    with pytest.raises(ValueError, match="expected each once"):
        ExtractSettings(measures=("sound", "sound"))
    extract = ExtractSettings.model_validate({"measures": reference(Loudest)})
    config = run_config("/in", "/out", extract=extract.model_dump(), speakers="auto")
    check_measures(config)
    check_measures(run_config("/in", "/out", extract={"measures": []}))
