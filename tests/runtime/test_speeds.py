"""Speeds of this machine that nobody measured: timed, or refused with the reason."""

import re
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.activity import Activity, Estimate
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.run import RunConfig
from corpus_asr.runtime import speeds
from corpus_asr.runtime.speeds import (
    EXTRACT_RTFX,
    Balance,
    Machine,
    balances,
    outlooks,
    timed_machines,
    words_of,
)
from corpus_asr.storage.model_files import full_name
from corpus_asr.storage.run_state.run_files import RUN_NAME, write_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.transcription.pace import Pace
from tests.support.tables import run_config, snapshot

PACE = Pace(window_s=1.0, token_s=0.01, beam_token_s=0.04, words_s=0.5)


def timed(config: RunConfig, recording_s: float = 600.0) -> speeds.Machine:
    [machine], _ = timed_machines(config, 4, recording_s=recording_s)
    return machine


def reason(config: RunConfig) -> str:
    machines, why = timed_machines(config, 4, recording_s=60.0)
    assert machines == []
    return why


def test_this_machine_is_timed_with_the_settings_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[DecodingSettings, dict[str, Any]]] = []

    def time_pace(folder: Path, decoding: DecodingSettings, **options: Any) -> Pace:
        asked.append((decoding, options))
        return PACE

    monkeypatch.setattr(speeds, "time_pace", time_pace)
    config = run_config("/in", str(tmp_path), model="whisper-tiny.en")
    usual = timed(config)
    beams = config.decoding.model_copy(update={"beam_size": 5})
    searched = timed(config.model_copy(update={"decoding": beams}))
    assert [decoding.beam_size for decoding, _ in asked] == ["auto", 5]
    assert asked[0][1]["device"] == "cpu"
    assert searched.rtfx < usual.rtfx
    assert usual.spread > 1.2
    assert usual.words().startswith(
        "this machine, calculated for windows in chunks, 5 beams where uncertain from parts of a "
        "whisper-tiny.en without weights, timed on "
    )
    assert timed(config, recording_s=4.0).rtfx < usual.rtfx / 2
    [outlook] = outlooks(Estimate(3600.0, 3600.0, 3600.0), [usual])
    off = outlook.duration_s.high / outlook.duration_s.value
    assert off == pytest.approx(usual.spread)


def test_why_nothing_was_timed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    config = run_config("/in", str(tmp_path), model="whisper-tiny.en")
    with monkeypatch.context() as patched:
        patched.setenv("RAY_ADDRESS", "head:6379")
        assert "timed here: the cluster of RAY_ADDRESS is not this machine" in reason(config)
    monkeypatch.setattr(speeds, "time_pace", fails)
    assert reason(config) == "no speed was timed here: No module named 'torch'"
    monkeypatch.setattr(speeds, "time_pace", lambda *_, **__: None)
    assert "only the networks of Whisper are timed" in reason(config)
    away = run_config("/in", str(tmp_path), model="some/model")
    assert "fetching the checkpoint some/model from the Hub" in reason(away)


GPUS = Machine(name="l4", rtfx=900.0, count=2)


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(str(tmp_path))


def sides(
    store: OutputStore, *machines: Machine, extract: Any = "auto", transcribe: Any = "auto"
) -> list[Balance]:
    workers = {"extract": {"workers": extract}, "transcribe": {"workers": transcribe}}
    return balances(run_config("/source", store.uri, **workers), store, machines)


def test_a_stated_speed_is_held_against_the_extract_workers_of_the_settings(store: OutputStore):
    assert sides(store) == []
    [few], [many], [enough] = (sides(store, GPUS, extract=number) for number in (4, 6, 5))
    assert (few.waits, many.waits, enough.waits) == ("transcription", "extraction", None)
    assert list(words_of([few, many])) == [
        "waits      transcription, for extraction: 4 extract workers of RTFx 385.0 (the benchmark "
        "of one core) for transcription of RTFx 1,800.0 (l4)",
        "           extraction, for transcription: 6 extract workers of RTFx 385.0 (the benchmark "
        "of one core) for transcription of RTFx 1,800.0 (l4)",
    ]
    # As many as are needed is what `auto` is taken to be where nothing is known of it.
    [needed] = sides(store, GPUS)
    assert (needed.extract_workers, needed.extract_rtfx) == (5, EXTRACT_RTFX)
    assert needed.words().startswith("neither side: 5 extract workers")


def test_a_core_extracts_as_the_benchmark_says():
    guide = Path(__file__).resolve().parents[2] / "benchmarks" / "README.md"
    [rate] = re.findall(r"takes (\d+) for MP3", guide.read_text())
    assert int(rate) == EXTRACT_RTFX


def test_speeds_of_the_last_run_are_those_of_its_workers_while_they_worked(store: OutputStore):
    activity = Activity(
        extract_alive_s=1000.0, extract_s=100.0, decoded_s=20_000.0,
        transcribe_alive_s=900.0, step_s=800.0, transcribed_s=20_000.0,
    )  # fmt: skip
    write_snapshot(store, snapshot(activity=activity))
    [as_before] = sides(store)  # two extract workers and one engine
    assert (as_before.extract_workers, as_before.extract_rtfx) == (2, 200.0)
    assert (as_before.transcribe_rtfx, as_before.waits) == (25.0, "extraction")
    [more] = sides(store, extract=4, transcribe=40)
    assert (more.transcribe_rtfx, more.waits) == (1000.0, "transcription")
    assert more.measured == more.name == "the run of 2026-01-01 here"
    given, _ = sides(store, GPUS)
    assert (given.transcribe_rtfx, given.extract_rtfx, given.waits) == (1800, 200, "transcription")
    # Another model says nothing of how fast this one is, but of extraction.
    store.write_json(RUN_NAME, {"model": "org/another"})
    [only] = sides(store, GPUS)
    assert (only.name, only.extract_rtfx) == ("l4", 200.0)
    own = full_name(run_config("/source", store.uri).model.checkpoint)
    store.write_json(RUN_NAME, {"model": own})
    assert len(sides(store, GPUS)) == 2
    # A few seconds are mostly the start of a run.
    write_snapshot(store, snapshot(activity=Activity(extract_s=1.0, decoded_s=60.0)))
    assert sides(store) == []
