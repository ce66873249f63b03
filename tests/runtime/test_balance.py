"""Which side of a job waits for the other, by its workers and by speeds that are known."""

import re
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.activity import Activity
from corpus_asr.runtime.balance import EXTRACT_RTFX, Balance, balances, words_of
from corpus_asr.runtime.speeds import Machine
from corpus_asr.storage.model_files import full_name
from corpus_asr.storage.run_state.run_files import RUN_NAME, write_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import run_config, snapshot

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
