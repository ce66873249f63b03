"""A transcriber around a tiny checkpoint: files in, transcripts out, whatever shares the slots."""

import inspect
import os
import threading
import wave
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.audio.inputs import given_audio
from corpus_asr.confidence import DEFAULT_MODEL, ConfidenceModel, segment_evidence
from corpus_asr.config.options import options_from
from corpus_asr.errors import ConfigError, DecodeError, FetchError
from corpus_asr.runtime import in_flight
from corpus_asr.runtime import transcriber as transcribing
from corpus_asr.runtime.in_flight import TranscriptionProgress
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.storage.run_state.run_files import write_calibration
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, tone, write_wavs
from tests.support.corpora import CLIPS, tiny_model
from tests.support.tables import segment

# A tiny random checkpoint babbles; a sampled text is the hardest to say twice.
BABBLE: dict[str, Any] = {
    "language": "en",
    "temperature": 1.0,
    "no_speech_threshold": None,
    "logprob_threshold": None,
    "compression_ratio_threshold": None,
}
FITTED = ConfidenceModel(name="fitted", offset=0.3, weights=(0.5, 1.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with Transcriber.from_pretrained(
        str(model), slots=2, part_s=30.0, vad_filter=False, **BABBLE
    ) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    return write_wavs(folder, noise=noise(40.0), tone=tone(2.0), short=noise(1.0, seed=1))


@pytest.mark.slow
def test_confidences_are_those_of_the_calibration(files: list[str], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    write_calibration(OutputStore(str(tmp_path)), FITTED, fitted={})
    options: dict[str, Any] = {"slots": 2, "vad_filter": False, **BABBLE}
    with Transcriber.from_pretrained(str(model), calibration=str(tmp_path), **options) as loaded:
        found = loaded.transcribe(files[0])
    assert found.segments
    for each in found.segments:
        evidence = segment_evidence(each)
        assert evidence is not None
        assert each.confidence == FITTED.confidence(evidence)
        assert each.confidence != DEFAULT_MODEL.confidence(evidence)


def test_no_samples_are_no_segments(transcriber: Transcriber) -> None:
    for nothing in (np.zeros(0), np.zeros((2, 0), dtype=np.float32), np.zeros(0, dtype=np.int16)):
        found = transcriber.transcribe(nothing, sampling_rate=16_000)
        assert (found.segments, found.text) == ((), "")
        assert found.duration_s < 0.001


def test_a_call_changes_options_under_any_name(transcriber: Transcriber, files: list[str]) -> None:
    plain = transcriber.transcribe(files[1], log_prob_threshold=None)  # type: ignore[call-arg]
    assert plain == transcriber.transcribe(files[1])
    with pytest.raises(ConfigError, match=r"batch_size: .*did you mean slots"):
        transcriber.transcribe(files[1], batch_size=4)  # type: ignore[call-arg]


def test_wrong_options_are_refused_before_a_file_is_read(transcriber: Transcriber) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"drop_nonspeech": True}, "vad_filter is false"),
        ({"vad_treshold": 0.5}, "did you mean vad_threshold"),
        (
            {"device": "cpu"},
            "device: found it in a call, expected it as an argument of Transcriber",
        ),
        ({"language": "xx"}, "does not know xx"),
        ({"tempratur": 0}, "temperature"),
    ]
    for options, words in wrong:
        with pytest.raises(ConfigError, match=words):
            transcriber.transcribe("nowhere.wav", **options)
    with pytest.raises(ConfigError, match="found channels: each, expected one channel or track"):
        transcriber.stream("nowhere.wav", channels="each")


def test_what_only_the_class_takes_is_refused_in_calls() -> None:
    assert {*transcribing.FIXED_OPTIONS, "self", "options"} == {
        *inspect.signature(Transcriber.__init__).parameters
    }


def test_the_language_of_a_recording_is_what_is_spoken_most(
    transcriber: Transcriber, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Future[PartTranscript]] = []
    for code, seconds, probability in (("en", 2.0, 0.9), ("de", 10.0, 0.6)):
        spoken = (segment(" w1", 0.0, seconds, language=code),)
        parts.append(Future())
        parts[-1].set_result(
            PartTranscript(segments=spoken, language=code, language_probability=probability,
                           transcribe_s=0.0)
        )  # fmt: skip
    monkeypatch.setattr(type(transcriber._engine), "submit", lambda *_, **__: parts.pop(0))
    found = transcriber.transcribe(files[0])  # two parts
    assert (found.language, found.language_probability) == ("de", 0.6)
    assert [one.language for one in found.segments] == ["en", "de"]


def samples_in(path: str) -> np.ndarray:
    with wave.open(path) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return (values / 32768).astype(np.float32)


@pytest.mark.long
def test_an_array_says_what_its_file_says(transcriber: Transcriber, files: list[str]) -> None:
    samples = samples_in(files[0])
    expected = transcriber.transcribe(files[0], temperature=0.0)
    assert len(expected.segments) > 1
    whole = np.rint(samples * 32768).astype(np.int16)
    given: dict[str, Any] = {
        "array": {"array": samples, "sampling_rate": SAMPLE_RATE_HZ},
        "int16": {"array": whole, "sampling_rate": SAMPLE_RATE_HZ},
        "tensor": {"array": torch.from_numpy(samples), "sampling_rate": SAMPLE_RATE_HZ},
        "channels": {"array": samples[None], "sampling_rate": SAMPLE_RATE_HZ},
        "bytes": {"bytes": Path(files[0]).read_bytes(), "path": None},
    }
    together = transcriber.transcribe_many(given.values(), temperature=0.0)
    found = {said.uri: said for said in together}
    assert sorted(map(str, found)) == [f"input-{number}" for number in range(len(given))]
    for said in found.values():
        # At temperature 0 nothing hangs on the name, which seeds samples.
        assert replace(said, uri=expected.uri) == expected
    alone = transcriber.transcribe(samples, sampling_rate=SAMPLE_RATE_HZ, temperature=0.0)
    assert replace(alone, uri=expected.uri) == expected
    with open(files[0], "rb") as opened:
        assert transcriber.transcribe(opened, temperature=0.0) == expected


def test_what_is_no_audio_is_refused_and_a_broken_array_is_one_recording(
    transcriber: Transcriber, files: list[str]
) -> None:
    samples = samples_in(files[1])
    with pytest.raises(ValueError, match="without a sampling rate"):
        transcriber.transcribe(samples)
    broken = samples.copy()
    broken[7] = np.nan
    failed: list[str] = []
    items = [{"array": one, "sampling_rate": SAMPLE_RATE_HZ} for one in (samples, broken, samples)]
    found = list(transcriber.transcribe_many(items, on_error=lambda uri, _: failed.append(uri)))
    assert sorted(str(one.uri) for one in found) == ["input-0", "input-2"]
    assert failed == ["input-1"]
    with pytest.raises(DecodeError, match="are NaN or infinite"):
        transcriber.stream(broken, sampling_rate=SAMPLE_RATE_HZ)
    with pytest.raises(DecodeError, match=r"input-0: .*empty"):
        transcriber.transcribe(b"")


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{"part_s": 600.0}, {"part_s": 600.0, "strategy": "chunked", "vad_filter": True}, {}],
    ids=["windows", "chunks", "parts"],
)
def test_a_stream_gives_what_transcribe_gives_in_order_and_reports(
    transcriber: Transcriber, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seeds hang on the name, which is another on each machine: nothing is sampled.
    options = options | {"temperature": 0.0}
    longer = str(CLIPS / "longer.mp3")  # 45 s: two windows
    reports: list[TranscriptionProgress] = []
    taken = threading.Event()
    listener = in_flight.CallInFlight._listener

    def patient(call: Any, part: Any) -> Any:
        listen = listener(call, part)

        def wait(transcribed_s: float, said: Any) -> None:
            taken.clear()
            listen(transcribed_s, said)
            assert not said or taken.wait(60)  # until the first segment of the window was taken

        return wait

    if "part_s" in options:
        monkeypatch.setattr(in_flight.CallInFlight, "_listener", patient)
    segments, seen = [], []
    for one in transcriber.stream(longer, on_progress=reports.append, **options):
        taken.set()
        segments.append(one)
        seen.append(reports[-1].transcribed_s)
    monkeypatch.undo()
    expected = transcriber.transcribe(longer, **options)
    assert tuple(segments) == expected.segments
    assert {progress.uri for progress in reports} == {longer}
    for name in ("decoded_s", "transcribed_s"):
        values = [getattr(progress, name) for progress in reports]
        assert values == sorted(values)
        assert values[-1] == expected.duration_s
    assert all(one.transcribed_s <= one.decoded_s <= (one.duration_s or 0.0) for one in reports)
    assert reports[0].duration_s == pytest.approx(expected.duration_s, abs=0.1)
    if "part_s" in options:  # what the first window says is there before the second is transcribed
        assert 0.0 < seen[0] < expected.duration_s


def test_segments_of_many_recordings_are_passed_on_as_they_are_final(
    transcriber: Transcriber, files: list[str], tmp_path: Path
) -> None:
    passed: dict[str, list[Segment]] = {name: [] for name in files}
    failed: list[str] = []
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    transcripts = transcriber.transcribe_many(
        [*files, str(broken)],
        on_segment=lambda name, segment: passed[name].append(segment),
        on_error=lambda name, _: failed.append(name),
    )
    before_end = {}
    for found in transcripts:
        before_end[str(found.uri)] = tuple(passed[str(found.uri)])
        assert before_end[str(found.uri)] == found.segments
    assert (sorted(before_end), failed) == (sorted(files), [str(broken)])


def test_a_pipe_that_nobody_writes_to_holds_nobody_up(
    transcriber: Transcriber, files: list[str]
) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "wb"):
        call = in_flight.CallInFlight(
            transcriber._pool, transcriber._engine, options_from({"part_s": 30.0})
        )
        with call:
            next(call.run([(given_audio(pipe, sampling_rate=None), None)]))
            [thread] = call.extractions
        assert thread.is_alive()
        assert transcriber.transcribe(files[1]).uri == files[1]
    thread.join(10)
    assert not thread.is_alive()


def test_a_damaged_recording_streams_what_is_good_of_it(
    transcriber: Transcriber, files: list[str], tmp_path: Path
) -> None:
    with pytest.raises(FetchError):
        list(transcriber.stream(str(tmp_path / "missing.wav")))
    segments: list[Segment] = []
    stream = transcriber.stream(files[0], temperature=0.0)
    flying: list[Any] = []
    submit = in_flight.CallInFlight._submit

    def damaged(call: Any, recording: Any, part: Any) -> None:
        submit(call, recording, part)
        flying.append(recording)
        raise DecodeError("decoding: damaged (scripted)", kind="damaged")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(in_flight.CallInFlight, "_submit", damaged)
        with pytest.raises(DecodeError, match="damaged"):
            segments.extend(stream)
    assert segments == [*flying[0].parts[0].transcript.result().segments]
    assert segments


@pytest.mark.long
def test_channels_are_transcribed_separately_or_one_alone(
    transcriber: Transcriber, tmp_path: Path
) -> None:
    stereo = np.stack([noise(33.0)[0], noise(33.0, seed=1)[0]])
    both = transcriber.transcribe(stereo, sampling_rate=SAMPLE_RATE_HZ, channels="each")
    alone = [
        transcriber.transcribe(stereo, sampling_rate=SAMPLE_RATE_HZ, channels=number)
        for number in (0, 1)
    ]
    assert all(one.segments for one in alone)
    assert both.channels == tuple(alone)
    assert [one.channel for one in (*alone, both)] == [0, 1, None]
    assert both.duration_s == alone[0].duration_s == 33.0
    said = [segment for one in alone for segment in one.segments]
    assert sorted(said, key=lambda one: one.start_s) == list(both.segments)
    assert both.by_channel() == {0: alone[0].segments, 1: alone[1].segments}
    assert both.model == transcriber.transcribe(stereo, sampling_rate=SAMPLE_RATE_HZ).model
    reports: list[TranscriptionProgress] = []
    transcriber.transcribe(
        stereo, sampling_rate=SAMPLE_RATE_HZ, channels="each", on_progress=reports.append
    )
    assert (reports[-1].decoded_s, reports[-1].transcribed_s) == (33.0, 33.0)


@pytest.mark.long
def test_speech_detection_can_be_set_for_one_call(transcriber: Transcriber) -> None:
    clip = str(CLIPS / "longer.mp3")
    less, usual, more = (
        transcriber.transcribe(clip, vad_filter=True, vad_pad_s=pad_s).speech_s or 0.0
        for pad_s in (0.0, 0.4, 2.0)
    )
    assert 0.0 < less < usual < more
    assert transcriber.transcribe(clip).speech_s is None  # as the object was made
    with pytest.raises(DecodeError, match="expected channel 7"):
        transcriber.transcribe(clip, channels=7)
