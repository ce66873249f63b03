"""Clips hold their segment within limits; whatever a recording does costs its own clip alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import DecodeError, EngineError
from corpus_asr.report.html import clips
from corpus_asr.report.html.clips import CLIP_LIMIT_S, MAX_CLIP_S, SampleClip, cut_clips
from corpus_asr.report.recordings import RecordingRow
from corpus_asr.report.samples import Sample
from corpus_asr.stages.messages import CutRequest
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, describe
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import decode, share_of_tone
from tests.support.runs import InThisProcess, seconds_heard, tone_hz, write_tones

SECONDS = 40


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "IsolatedGenerator", InThisProcess)


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    write_tones(tmp_path / "tones.wav", seconds=SECONDS, num_channels=2)
    return tmp_path / "tones.wav"


def row(path: Path, **values: Any) -> RecordingRow:
    version = describe(str(path))
    usual: dict[str, Any] = {
        "recording_id": recording_id(str(path)), "uri": str(path), "etag": version.etag,
        "size_bytes": version.size_bytes, "status": "ok", "language": "en", "segments": 1,
        "duration_s": float(SECONDS), "confidence": 0.5, "decode_errors": 0, "extract_s": 1.0,
        "transcribe_s": 1.0,
    }  # fmt: skip
    return RecordingRow(**usual | values)


def sample(row: RecordingRow, start_s: float, end_s: float, channel: int | None = None) -> Sample:
    return Sample(
        recording_id=row.recording_id, uri=row.uri, channel=channel, start_s=start_s, end_s=end_s,
        text="", language="en", confidence=0.5,
    )  # fmt: skip


def cut(
    *samples: Sample, rows: tuple[RecordingRow, ...], **options: Any
) -> dict[Sample, SampleClip]:
    usual: dict[str, Any] = {"store": DEFAULT_STORE, "channels": "each"}
    return cut_clips(samples, {each.recording_id: each for each in rows}, **usual | options)


def test_a_clip_is_its_segment_from_its_channel_and_ends_with_the_recording(tones: Path) -> None:
    of = row(tones)
    # Whole seconds with the 0.2 s that are added before and after.
    wanted = [sample(of, 3.2, 5.8, 0), sample(of, 0.0, 1.8, 1), sample(of, 37.2, 42.0, 0)]
    found = cut(*wanted, wanted[0], rows=(of,))
    assert list(found) == wanted
    first, second, last = (decode(each.data or b"")[0] for each in found.values())
    assert (seconds_heard(first), seconds_heard(last)) == ([3, 4, 5], [37, 38, 39])
    assert share_of_tone(second[:SAMPLE_RATE_HZ], tone_hz(0) + 50) > 0.9
    assert [each.duration_s for each in found.values()] == pytest.approx([3.0, 2.0, 3.0])
    assert not any(each.cut or each.why for each in found.values())
    assert found[wanted[0]].src.startswith("data:audio/ogg;base64,T2dnUw")  # "OggS"


def test_long_segments_are_cut_and_damaged_recordings_are_not_sought(
    tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[CutRequest] = []
    run = InThisProcess.run

    def noted(self: InThisProcess, item: CutRequest) -> Iterator[Any]:
        requests.append(item)
        return run(self, item)

    monkeypatch.setattr(InThisProcess, "run", noted)
    of = row(tones)
    [clip] = cut(sample(of, 5.0, 35.0, 0), rows=(of,)).values()
    assert clip.cut
    assert clip.duration_s == pytest.approx(MAX_CLIP_S + 0.4)
    assert len(clip.data or b"") < 60_000
    damaged = row(tones, decode_errors=3)
    cut(sample(damaged, 5.0, 6.0, 0), rows=(damaged,))
    assert [request.seek for request in requests] == [True, False]


def test_why_there_is_no_clip_is_said_and_others_have_theirs(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = row(tones)
    gone = replace(good, recording_id="gone", uri=str(tmp_path / "gone.wav"))
    changed = replace(good, recording_id="changed", etag="other")
    short = replace(good, recording_id="short", duration_s=100.0)
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    no_audio = row(text, recording_id="no_audio")
    crashes = replace(good, recording_id="crashes", uri="crashes")
    odd = replace(good, recording_id="odd", uri="odd")
    run = InThisProcess.run

    def failing(self: InThisProcess, item: CutRequest) -> Iterator[Any]:
        if item.uri == "crashes":
            raise DecodeError("its child process died (SIGSEGV)", kind="decoder_crashed")
        if item.uri == "odd":
            raise RuntimeError("what nobody expected")
        return run(self, item)

    monkeypatch.setattr(InThisProcess, "run", failing)
    rows = (gone, changed, short, no_audio, crashes, odd, good)
    samples = [sample(each, 1.0 if each is not short else 60.0, 62.0) for each in rows]
    unknown = replace(samples[0], recording_id="unknown")
    found = cut(*samples, unknown, rows=rows)
    assert [each.why for each in found.values()] == [
        "the recording is no longer there",
        "the recording has changed since it was transcribed",
        "the recording ends before this segment",
        "it cannot be read or decoded now",
        "its decoder crashed",
        "it cannot be decoded",
        "",
        "its recording is not in the tables",
    ]
    assert [bool(each.data) for each in found.values()] == [False] * 6 + [True, False]


def test_limits_of_time_and_bytes_hold_and_without_a_child_nothing_is_tried_twice(
    tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = row(tones)
    samples = [sample(of, start_s, start_s + 2.0, 0) for start_s in range(5)]
    assert {each.why for each in cut(*samples, rows=(of,), budget_s=0.0).values()} == {
        "the clips before it took 0 s"
    }
    with monkeypatch.context() as patch:
        patch.setattr(clips, "MAX_BYTES", 48_000)  # one longest clip, and a bit
        found = list(cut(*samples, rows=(of,)).values())
    assert [bool(each.data) for each in found] == [True, True, False, False, False]
    assert sum(len(each.data or b"") for each in found) < 48_000
    assert found[-1].why == "the clips before it fill 0.0 MB"
    tried = []

    def no_start(self: InThisProcess, item: CutRequest) -> Iterator[Any]:
        tried.append(item)
        raise EngineError("starting a child process")

    monkeypatch.setattr(InThisProcess, "run", no_start)
    why = {each.why for each in cut(*samples, rows=(of,)).values()}
    assert why == {"no process for decoding could be started"}
    assert len(tried) == 1


def test_a_store_is_asked_within_the_limit_of_a_clip(
    tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def noted(target: str, **options: Any) -> InThisProcess:
        made.append(options)
        return InThisProcess(target, **options)

    monkeypatch.setattr(clips, "IsolatedGenerator", noted)
    cut(sample(row(tones), 0.0, 1.0), rows=(row(tones),))
    [options] = made
    assert options["timeout_s"] == CLIP_LIMIT_S
    policy = options["init_kwargs"]["store"].policy
    assert (policy.request_timeout_s, policy.patience_s) == (CLIP_LIMIT_S, CLIP_LIMIT_S)
