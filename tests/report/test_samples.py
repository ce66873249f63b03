"""What is chosen from a run's tables for its page, however its rows are spread over objects."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from corpus_asr.errors import DecodeError, EngineError
from corpus_asr.report import samples
from corpus_asr.report.nightly import findings_of
from corpus_asr.report.page import write_page
from corpus_asr.report.run import counted_run
from corpus_asr.report.samples import (
    MAX_CLIP_S,
    SAMPLES,
    Details,
    RecordingRow,
    Sample,
    SampleClip,
    Sampler,
    cut_clips,
)
from corpus_asr.schemas import OUTCOMES, SEGMENTS
from corpus_asr.stages.messages import CutRequest
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, describe
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import decode, share_of_tone
from tests.support.runs import InThisProcess, seconds_heard, tone_hz, write_tones
from tests.support.tables import put_nested


def wide(schema: pa.Schema, columns: dict[str, pa.Array], rows: int) -> pa.Table:
    """Return a table of a schema; columns that are not given are null."""
    return pa.table(
        [columns.get(field.name, pa.nulls(rows)).cast(field.type) for field in schema],
        schema=schema,
    )


def corpus(folder: Path, recordings: int, *, each: int = 2, objects: int = 3) -> OutputStore:
    """Write recordings of `each` segments over some objects; their confidence rises."""
    store = OutputStore(str(folder))
    store.write_json(CONFIG_NAME, {"model": {"checkpoint": "some/model"}})
    for numbers in np.array_split(np.arange(recordings), objects):
        uris = [f"/audio/{number:07d}.wav" for number in numbers]
        ids = pa.array([recording_id(uri) for uri in uris])
        count, total = len(numbers), len(numbers) * each
        outcomes = {
            "run_id": pa.repeat("run", count), "recording_id": ids, "uri": pa.array(uris),
            "part": pa.repeat(0, count), "last_part": pa.repeat(True, count),
            "duration_s": pa.array(np.full(count, 20.0)), "status": pa.repeat("ok", count),
            "language": pa.repeat("en", count), "segments_written": pa.repeat(each, count),
            "decode_s": pa.array(numbers / 1000.0), "transcribe_s": pa.array(np.zeros(count)),
        }  # fmt: skip
        owners = pa.array(np.repeat(np.arange(count), each))
        place = np.tile(np.arange(each), count)
        segments = {
            "run_id": pa.repeat("run", total), "recording_id": ids.take(owners),
            "uri": pa.array(uris).take(owners), "part": pa.repeat(0, total),
            "segment": pa.array(place), "start_s": pa.array(place * 1.0),
            "end_s": pa.array(place + 1.0),
            "text": pa.array([f" number {number} said" for number in np.repeat(numbers, each)]),
            "language": pa.repeat("en", total),
            "confidence": pa.array(np.repeat(numbers / recordings, each)),
        }  # fmt: skip
        put_nested(store, wide(OUTCOMES, outcomes, count), wide(SEGMENTS, segments, total))
    return store


def gathered(store: OutputStore) -> Details:
    with counted_run(store, sampler := Sampler(store)) as (_, tables):
        return sampler.details(tables)


def test_the_least_confident_are_found_and_the_draw_stays(tmp_path: Path) -> None:
    store = corpus(tmp_path, 500, each=3)
    found = gathered(store)
    # Two of each recording at most, the least sure first.
    assert [one.text for one in found.unsure] == [
        f" number {number // 2} said" for number in range(SAMPLES)
    ]
    assert [one.start_s for one in found.unsure[:2]] == [0.0, 1.0]
    assert len({(one.uri, one.start_s) for one in found.random}) == SAMPLES
    assert max(one.confidence for one in found.random) > 0.5
    assert gathered(store) == found


def test_parts_committed_again_change_nothing(tmp_path: Path) -> None:
    found = gathered(corpus(tmp_path, 40))
    again = corpus(tmp_path, 40)
    assert len(again.commit_names()) == 6
    assert gathered(again) == found


def test_each_object_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = corpus(tmp_path, 50), Counter[str]()
    batches = OutputStore.batches

    def counted(self: OutputStore, name: str, **options: Any) -> Iterator[pa.RecordBatch]:
        read[name] += 1
        return batches(self, name, **options)

    monkeypatch.setattr(OutputStore, "batches", counted)
    gathered(store)
    assert read == dict.fromkeys(store.commit_names(), 3), "parts, confidences, and what is shown"
    read.clear()
    findings = findings_of(store, "run")
    assert (findings.done, findings.low_confidence) == (50, 36)  # 35 / 50 is less in 32 bits
    assert set(read.values()) == {2}


@pytest.mark.long
def test_the_page_of_many_segments_is_small(tmp_path: Path) -> None:
    store = corpus(tmp_path / "output", 5_000)
    write_page(store, str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").stat().st_size < 80_000


SECONDS = 40


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "IsolatedGenerator", InThisProcess)


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    write_tones(tmp_path / "tones.wav", seconds=SECONDS, num_channels=2)
    return tmp_path / "tones.wav"


def row(path: Path, **values: Any) -> RecordingRow:
    version = describe(str(path))
    usual: dict[str, Any] = {
        "recording_id": recording_id(str(path)), "uri": str(path), "etag": version.etag,
        "size_bytes": version.size_bytes, "duration_s": float(SECONDS), "decode_errors": 0,
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
    [audio, *_] = decode(clip.data or b"")
    assert len(audio) / SAMPLE_RATE_HZ == pytest.approx(MAX_CLIP_S + 0.4, abs=0.1)
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
    wanted = [sample(each, 1.0 if each is not short else 60.0, 62.0) for each in rows]
    unknown = replace(wanted[0], recording_id="unknown")
    found = cut(*wanted, unknown, rows=rows)
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


def test_the_limit_of_time_holds_and_without_a_child_nothing_is_tried_twice(
    tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = row(tones)
    wanted = [sample(of, start_s, start_s + 2.0, 0) for start_s in range(5)]
    with monkeypatch.context() as patch:
        patch.setattr(samples, "BUDGET_S", 0.0)
        why = {each.why for each in cut(*wanted, rows=(of,)).values()}
        assert why == {"the clips before it took 0 s"}
    tried = []

    def no_start(self: InThisProcess, item: CutRequest) -> Iterator[Any]:
        tried.append(item)
        raise EngineError("starting a child process")

    monkeypatch.setattr(InThisProcess, "run", no_start)
    why = {each.why for each in cut(*wanted, rows=(of,)).values()}
    assert why == {"no process for decoding could be started"}
    assert len(tried) == 1
