import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from corpus_asr.activity import Activity
from corpus_asr.errors import EngineError, ItemError
from corpus_asr.schemas import PARTS, RESULTS
from corpus_asr.stages.parts import one_row
from corpus_asr.stages.transcribe import EngineSpec, TranscribeStage, refuse
from tests.support.engines import ScriptedEngine, always, broken_engine, scripted_engine

MEL = 4


def part_row(recording: str = "a", part: int = 0, **changes: Any) -> pa.Table:
    row = {
        "recording_id": recording,
        "uri": f"memory://{recording}",
        "part": part,
        "last_part": True,
        "part_start_s": 10.0 * part,
        "part_end_s": 10.0 * part + 1.0,
        "status": "ok",
        "codec": "mp3",
        "speech_s": 0.5,
        "speech_spans": [{"start_s": 10.0 * part + 0.25, "end_s": 10.0 * part + 0.75}],
        "num_samples": 16_000,
        "num_mel_bins": MEL,
        "features": np.full((102, MEL), part, np.float16),
        "pad_value": -1.5,
        "language_window_start_s": 0.25,
        "decode_s": 0.1,
    }
    return one_row(PARTS, row | changes)


def silent_row(recording: str) -> pa.Table:
    return part_row(recording, status="no_speech", features=None, speech_spans=[], pad_value=None)


def failed_row(recording: str) -> pa.Table:
    failure: dict[str, Any] = {
        "status": "failed",
        "error_stage": "extract",
        "error_kind": "no_audio_stream",
        "error_message": "decoding: no audio",
        "retryable": False,
    }
    nothing = dict.fromkeys(("features", "part_start_s", "part_end_s", "num_samples"))
    return part_row(recording, 0, **(failure | nothing))


def stage_with(engine: ScriptedEngine) -> TranscribeStage:
    return TranscribeStage(EngineSpec(checkpoint="c"), engine_factory=always(engine))


@pytest.fixture
def stage() -> TranscribeStage:
    return TranscribeStage(EngineSpec(checkpoint="c"), engine_factory=scripted_engine)


def test_results_come_in_input_order_whatever_is_ready_first():
    engine = ScriptedEngine(held=True)
    stage = stage_with(engine)
    batch = pa.concat_tables([part_row("a", part) for part in range(4)])
    answers: list[pa.Table] = []
    caller = threading.Thread(target=lambda: answers.append(stage(batch)))
    caller.start()
    with engine.submitted:
        assert engine.submitted.wait_for(lambda: len(engine.requests) == 4, timeout=10)
    engine.release()
    caller.join(timeout=10)
    (results,) = answers
    assert results.schema.equals(RESULTS, check_metadata=True)
    assert results.column("part").to_pylist() == [0, 1, 2, 3]
    texts = [row[0]["text"] for row in results.column("segments").to_pylist()]
    assert texts == [f" part {part} of 102 frames" for part in range(4)]


def test_several_calls_are_in_flight_on_one_engine():
    engine = ScriptedEngine(held=True)
    stage = stage_with(engine)
    callers = [threading.Thread(target=stage, args=(part_row(name),)) for name in "abc"]
    for caller in callers:
        caller.start()
    with engine.submitted:
        # All three reach the engine although none has been answered.
        assert engine.submitted.wait_for(lambda: len(engine.requests) == 3, timeout=10)
    engine.release()
    for caller in callers:
        caller.join(timeout=10)
        assert not caller.is_alive()


def test_the_engine_sees_the_features_where_they_are_and_everything_else_as_written():
    engine = ScriptedEngine()
    language = np.full((3000, MEL), 2, np.float16)
    batch = pa.concat_tables([part_row("a", 0), part_row("a", 1, language_features=language)])
    stage_with(engine)(batch)
    first, second = engine.requests
    assert first.features.shape == (102, MEL)
    buffer = batch.column("features").chunk(0).values.buffers()[1]
    assert np.shares_memory(first.features, np.frombuffer(buffer, np.float16))
    assert first.language_features is None
    assert second.language_features.shape == (3000, MEL)
    assert second.start_s == 10.0
    assert second.pad_value == -1.5
    assert [(span.start_s, span.end_s) for span in second.speech] == [(10.25, 10.75)]


def test_silence_and_failures_pass_through_without_the_engine():
    engine = ScriptedEngine()
    stage = stage_with(engine)
    results = stage(pa.concat_tables([silent_row("a"), part_row("b"), failed_row("c")]))
    assert [request.recording_id for request in engine.requests] == ["b"]
    silent, spoken, failed = results.to_pylist()
    assert (silent["status"], silent["segments"], silent["device"]) == ("no_speech", [], None)
    assert silent["duration_s"] == 1.0
    assert spoken["segments_written"] == 1
    assert spoken["device"] == "scripted"
    assert spoken["language"] == "en"
    assert failed["error_kind"] == "no_audio_stream"
    assert failed["error_stage"] == "extract"
    assert failed["duration_s"] is None


def test_an_error_of_one_part_is_that_parts_failure_alone(stage: TranscribeStage):
    names = ("a", "item-error", "bug", "b")
    results = stage(pa.concat_tables([part_row(name) for name in names])).to_pylist()
    assert [row["status"] for row in results] == ["ok", "failed", "failed", "ok"]
    _, item, bug, _ = results
    assert (item["error_stage"], item["error_kind"], item["segments"]) == (
        "transcribe", "scripted", [],
    )  # fmt: skip
    assert (bug["error_kind"], bug["retryable"]) == ("internal", False)
    assert bug["error_message"] == "RuntimeError: scripted bug"


def test_words_become_rows_of_their_segment_where_there_are_any(stage: TranscribeStage):
    results = stage(pa.concat_tables([part_row("words", 1), part_row("a")]))
    (timed,), (plain,) = results.column("segments").to_pylist()
    first, *others = timed["words"]
    assert first == {"word": " part", "start_s": 10.0, "end_s": 10.2, "probability": 0.5}
    assert len(others) == 4
    assert plain["words"] is None


def test_an_engine_error_propagates(stage: TranscribeStage):
    with pytest.raises(EngineError, match="device is lost"):
        stage(pa.concat_tables([part_row("a"), part_row("engine-error")]))


def test_an_engine_that_cannot_load_says_so_in_the_first_call_that_needs_it():
    stage = TranscribeStage(EngineSpec(checkpoint="c"), engine_factory=broken_engine)
    assert stage(silent_row("a")).column("status").to_pylist() == ["no_speech"]
    with pytest.raises(EngineError, match="no device"):
        stage(part_row("a"))
    with pytest.raises(EngineError):
        stage.wait_until_loaded()
    assert stage.activity == Activity(parts_begun=2, parts_transcribed=1)
    stage.close()


def test_closing_closes_the_engine():
    engine = ScriptedEngine()
    stage = stage_with(engine)
    stage(part_row("a"))
    stage.close()
    assert engine.closed


def test_refused_parts_say_why_and_how_often_they_were_tried():
    (row,) = refuse(part_row("a"), ItemError("died", kind="poison"), attempts=2).to_pylist()
    assert (row["status"], row["error_kind"], row["attempts"]) == ("failed", "poison", 2)


def test_what_was_done_is_counted():
    engine = ScriptedEngine(held=True)
    stage = stage_with(engine)
    call = threading.Thread(target=stage, args=(pa.concat_tables([part_row(), silent_row("b")]),))
    call.start()
    with engine.submitted:
        assert engine.submitted.wait_for(lambda: engine.requests, timeout=60)
    working = stage.activity
    assert (working.parts_begun, working.parts_transcribed) == (2, 0)
    assert (working.slots, working.windows) == (1, 1)
    assert working.transcribe_alive_s > 0
    engine.release()
    call.join()
    assert stage.activity.parts_transcribed == 2
    stage.close()
