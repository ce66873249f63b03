import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from corpus_asr.activity import Activity
from corpus_asr.confidence import ConfidenceModel
from corpus_asr.errors import EngineError
from corpus_asr.families.registry import PartFeatures
from corpus_asr.schemas import RESULTS
from corpus_asr.segments import PartLabels
from corpus_asr.stages.parts import further_rows
from corpus_asr.stages.transcribe import EngineSpec, TranscribeStage
from corpus_asr.storage.run_state.part_rows import commit_rows
from tests.support.engines import ScriptedEngine, always, broken_engine, scripted_engine
from tests.support.tables import extracted, run_config

SPEC = EngineSpec(config=run_config("/in", "/out"), device="cpu")

MEL = 4


def silent_row(recording: str) -> pa.Table:
    return extracted(recording, status="no_speech", features=None, speech_spans=[], pad_value=None)


def failed_row(recording: str) -> pa.Table:
    nothing = dict.fromkeys(("features", "part_start_s", "part_end_s", "num_samples"))
    return extracted(
        recording, 0, status="failed", error_stage="extract", error_kind="no_audio_stream",
        error_message="decoding: no audio", retryable=False, **nothing,
    )  # fmt: skip


def stage_with(engine: ScriptedEngine) -> TranscribeStage:
    return TranscribeStage(SPEC, engine_factory=always(engine))


@pytest.fixture
def stage() -> TranscribeStage:
    return TranscribeStage(SPEC, engine_factory=scripted_engine)


def test_results_come_in_input_order_whatever_is_ready_first():
    engine = ScriptedEngine(held=True)
    stage = stage_with(engine)
    batch = pa.concat_tables([extracted("a", part) for part in range(4)])
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


def test_the_engine_sees_the_features_where_they_are_and_everything_else_as_written():
    engine = ScriptedEngine()
    language = np.full((3000, MEL), 2, np.float16)
    batch = pa.concat_tables([extracted("a", 0), extracted("a", 1, language_features=language)])
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


def test_the_engine_gets_features_of_all_kinds():
    engine = ScriptedEngine()
    stage = stage_with(engine)
    other = PartFeatures(values=np.full((100, 6), 3.0, np.float16), pad_value=-2.0)
    plain, several = extracted("a"), extracted("b", further=further_rows({"other": other}))
    stage(pa.concat_tables([plain, several]))
    without, with_both = engine.requests
    assert not without.further
    assert without.with_kind(None) is without
    taken = with_both.with_kind("other")
    np.testing.assert_array_equal(taken.features, other.values)
    assert (taken.pad_value, taken.language_features) == (-2.0, None)
    assert (taken.recording_id, taken.speech) == (with_both.recording_id, with_both.speech)


def test_silence_and_failures_pass_through_without_the_engine():
    engine = ScriptedEngine()
    stage = stage_with(engine)
    results = stage(pa.concat_tables([silent_row("a"), extracted("b"), failed_row("c")]))
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
    results = stage(pa.concat_tables([extracted(name) for name in names])).to_pylist()
    assert [row["status"] for row in results] == ["ok", "failed", "failed", "ok"]
    _, item, bug, _ = results
    assert (item["error_stage"], item["error_kind"], item["segments"]) == (
        "transcribe", "scripted", [],
    )  # fmt: skip
    assert (bug["error_kind"], bug["retryable"]) == ("internal", True)
    assert bug["error_message"] == "RuntimeError: scripted bug"


LABELS = PartLabels(windows=(), means=(("speech", 0.5),), weight_s=1.0)
# Of a transcript by recording, beside what its segments have.
ODD_FIELDS: dict[str, dict[str, Any]] = {
    "language": {"language": "\ud800"}, "probability": {"language_probability": float("inf")},
    "labels": {"labels": LABELS},
}  # fmt: skip
ODD_SEGMENTS: dict[str, dict[str, Any]] = {
    "text": {"text": "\ud800"}, "half": {"avg_logprob": float("nan")}, "bytes": {"text": b"\xff"},
    "logprob": {"text_logprob": "low"}, "ratio": {"compression_ratio": [1.0]},
    "tokens": {"tokens": (2**70,)}, "words": {"words": ("word",)}, "start": {"start_s": object()},
}  # fmt: skip
# Both table and calibration take these.
EXTREME_SEGMENTS: dict[str, dict[str, Any]] = {
    "largest": {"text_logprob": 1e300, "compression_ratio": -1e300, "speech_fraction": 1e300},
    "none": {"text_logprob": None, "start_s": None, "language": None},
}


def test_what_no_table_can_hold_is_the_failure_of_its_part_and_all_is_committed(
    caplog: pytest.LogCaptureFixture,
):
    class Odd(ScriptedEngine):
        def submit(self, request: Any) -> Any:
            name = request.recording_id
            if name == "refused":
                raise KeyError("\ud800")
            transcript = super().submit(request).result()
            changes = (ODD_SEGMENTS | EXTREME_SEGMENTS).get(name, {})
            segments = tuple(replace(segment, **changes) for segment in transcript.segments)
            odd: Future[Any] = Future()
            odd.set_result(replace(transcript, segments=segments, **ODD_FIELDS.get(name, {})))
            return odd

    failing = ["refused", *ODD_FIELDS, *ODD_SEGMENTS]
    names = ["a", *failing, *EXTREME_SEGMENTS, "b"]
    results = stage_with(Odd())(pa.concat_tables([extracted(name) for name in names]))
    found = {row["recording_id"]: row for row in results.to_pylist()}
    assert [name for name in names if found[name]["status"] == "failed"] == failing
    for name in failing:
        row = found[name]
        assert (row["error_kind"], row["segments_written"], row["segments"]) == ("internal", 0, [])
    assert r"KeyError: '\ud800'" in found["refused"]["error_message"]
    assert "found avg_logprob nan, expected a finite number" in found["half"]["error_message"]
    assert caplog.text.count("event=part_failed") == caplog.text.count("Traceback") == len(failing)
    calibration = ConfidenceModel(name="fitted", offset=0.1, weights=(1.0, 2.0, 3.0, 4.0))
    committed = commit_rows(
        results,
        run_id="run",
        model=("model", "revision"),
        by_language={"en": ("other", "revision")},
        calibration=calibration,
    )
    assert committed["status"].to_pylist() == [found[name]["status"] for name in names]


def test_words_become_rows_of_their_segment_where_there_are_any(stage: TranscribeStage):
    results = stage(pa.concat_tables([extracted("words", 1), extracted("a")]))
    (timed,), (plain,) = results.column("segments").to_pylist()
    first, *others = timed["words"]
    assert first == {"word": " part", "start_s": 10.0, "end_s": 10.2, "probability": 0.5}
    assert len(others) == 4
    assert plain["words"] is None


def test_an_engine_that_cannot_load_says_so_in_the_first_call_that_needs_it():
    stage = TranscribeStage(SPEC, engine_factory=broken_engine)
    assert stage(silent_row("a")).column("status").to_pylist() == ["no_speech"]
    with pytest.raises(EngineError, match="no device"):
        stage(extracted("a"))
    with pytest.raises(EngineError):
        stage.wait_until_loaded()
    assert stage.activity == Activity(parts_started=2, parts_transcribed=1, transcribed_s=1.0)
    stage.close()


def test_what_was_done_is_counted():
    engine = ScriptedEngine(held=True)
    stage = stage_with(engine)
    call = threading.Thread(target=stage, args=(pa.concat_tables([extracted(), silent_row("b")]),))
    call.start()
    with engine.submitted:
        assert engine.submitted.wait_for(lambda: engine.requests, timeout=60)
    working = stage.activity
    assert (working.parts_started, working.parts_transcribed) == (2, 0)
    assert (working.slots, working.windows) == (1, 1)
    assert working.transcribe_alive_s > 0
    engine.release()
    call.join()
    assert stage.activity.parts_transcribed == 2
    stage.close()
    assert engine.closed


def test_audio_is_counted_window_by_window_and_each_second_once():
    engine = ScriptedEngine(held=True)
    stage = stage_with(engine)
    batch = pa.concat_tables([extracted("a"), silent_row("b"), failed_row("c"), extracted("bug")])
    caller = threading.Thread(target=stage, args=(batch,))
    caller.start()
    with engine.submitted:
        assert engine.submitted.wait_for(lambda: len(engine.requests) == 2, timeout=10)
    assert stage.activity.transcribed_s == 1.0  # the silent one
    reach = engine.requests[0].listener
    # As far as 0.25 s; back, where a window is decoded again; and beyond the end.
    for reached_s, counted in ((0.25, 1.25), (0.125, 1.25), (0.5, 1.5), (9.0, 2.0)):
        reach(reached_s, ())
        assert stage.activity.transcribed_s == counted
    engine.release()
    caller.join(timeout=10)
    assert stage.activity.transcribed_s == 3.0  # a part that failed is through as well
