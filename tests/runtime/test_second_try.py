from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import DEFAULT_OPTIONS, Retry, RunOptions
from corpus_asr.errors import EngineError
from corpus_asr.runtime import workers
from corpus_asr.runtime.second_try import (
    POISON,
    RetriedRecording,
    each_alone,
    recordings_left,
)
from corpus_asr.schemas import PACKS, RESULTS
from corpus_asr.storage.run_state.recording_rows import LostPortion
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support import tables
from tests.support.corpora import tiny_model
from tests.support.tables import part, results, run_config


def file(name: str, *done: int) -> dict[str, Any]:
    """Return a planned recording `/name`."""
    (row,) = tables.files(name).to_pylist()
    return row | {"begun_by": None, "done_parts": list(done)}


def left(
    folder: Path, *files: dict[str, Any], options: RunOptions = DEFAULT_OPTIONS
) -> dict[str, list[int]]:
    """Return which parts are done of recordings that a run did not finish."""
    packs = [RetriedRecording(file=row).pack() for row in files]
    store = OutputStore(str(folder))
    found, _ = recordings_left(store, packs, run_id="this", options=options)
    assert all(recording.pack().schema.equals(PACKS) for recording in found)
    return {recording.file["uri"]: recording.file["done_parts"] for recording in found}


def commit(folder: Path, *rows: dict[str, Any], run_id: str = "this") -> None:
    tables.commit(OutputStore(str(folder)), results(*rows), run_id=run_id)


def test_what_is_complete_is_not_left_and_of_the_rest_only_what_is_not_done(tmp_path: Path) -> None:
    commit(
        tmp_path,
        part("whole", 0, texts=["a"], last=False),
        part("whole", 1, texts=["b"]),
        part("hole", 0, texts=["a"], last=False),
        part("hole", 2, texts=["c"]),
        part("endless", 0, texts=["a"], last=False),
    )
    files = [file(name) for name in ("whole", "hole", "endless", "new")]
    assert left(tmp_path, *files) == {"/hole": [0, 2], "/endless": [0], "/new": []}


def test_a_part_that_two_workers_committed_counts_once(tmp_path: Path) -> None:
    commit(tmp_path, part("a", 0, texts=["a"], last=False), part("b", 0, texts=["b"]))
    commit(tmp_path, part("a", 0, texts=["a"], last=False), part("a", 1, texts=["b"]))
    commit(tmp_path, part("c", 0, texts=["c"]), run_id="earlier")
    _, tally = recordings_left(OutputStore(str(tmp_path)), [], run_id="this")
    assert (tally.parts, tally.files) == (3, 2)


def test_parts_of_earlier_runs_count_and_their_failures_do_not(tmp_path: Path) -> None:
    failed: dict[str, Any] = {"texts": None, "status": "failed", "error_kind": "fetch"}
    first = part("a", 0, **failed, retryable=True, last=False)
    commit(tmp_path, first, part("a", 1, texts=["b"]), run_id="earlier")
    assert left(tmp_path, file("a", 1)) == {"/a": [1]}
    # That it was not the last part is known of the earlier run.
    commit(tmp_path, part("a", 0, texts=["a"], last=False))
    assert left(tmp_path, file("a", 1)) == {}


def test_what_failed_in_the_run_is_not_tried_again_but_for_what_follows_it(tmp_path: Path) -> None:
    failed: dict[str, Any] = {"texts": None, "status": "failed", "error_kind": "fetch"}
    commit(
        tmp_path,
        part("whole", 0, **failed, retryable=True),
        part("broken", 0, **failed, retryable=True, last=False),
        part("ended", 1, **failed, retryable=True),
    )
    files = [file(name) for name in ("whole", "broken", "ended")]
    every = RunOptions(retry=Retry.all)
    # A failure that ended a recording may come again: its place has to be free.
    assert left(tmp_path, *files, options=every) == {"/broken": [0], "/ended": []}


def deadly(*names: str, again: bool = True) -> Any:
    """Return what loses these items, the first time alone or each time."""
    seen: list[str] = []

    def do(items: Iterable[str]) -> Iterator[str | LostPortion]:
        for item in items:
            dies = item in names and (again or item not in seen)
            seen.append(item)
            yield LostPortion(item, EngineError("gone")) if dies else item

    return do, seen


def test_what_ends_a_process_is_tried_once_more_and_its_neighbors_once() -> None:
    do, seen = deadly("b", again=False)
    assert list(each_alone(do, "abc")) == ["a", "c", "b"]
    assert seen == ["a", "b", "c", "b"]


def test_what_ends_two_processes_is_lost() -> None:
    do, seen = deadly("b", "c")
    *others, first, second = each_alone(do, "abcd")
    assert others == ["a", "d"]
    assert [first.portion, second.portion] == ["b", "c"]
    assert seen == ["a", "b", "c", "d", "b", "c"]


def test_what_ends_all_processes_is_given_up() -> None:
    do, seen = deadly(*"abcde")
    assert [lost.portion for lost in each_alone(do, "abcde", most_in_a_row=2)] == ["a", "b"]
    assert seen == ["a", "b", "a", "b"]


def test_a_recording_is_given_up_at_its_first_open_part() -> None:
    recording = RetriedRecording(file=file("a", 0))
    recording.add_done([1])
    assert recording.attempt == 2
    recording.reasons += ["GPU 0 of x: it died", "GPU 1 of x: no memory"]
    rows = recording.poison()
    assert rows.schema.equals(RESULTS)
    (row,) = rows.to_pylist()
    assert (row["part"], row["last_part"], row["attempts"]) == (2, True, 3)
    assert (row["status"], row["error_kind"], row["error_stage"]) == (
        "failed",
        POISON,
        "transcribe",
    )
    assert (row["recording_id"], row["retryable"], row["device"]) == (
        file("a")["recording_id"],
        True,
        None,
    )
    assert row["error_message"].startswith(
        "transcribing /a from part 2 on: found 2 deaths of workers on it alone "
        "(GPU 0 of x: it died; GPU 1 of x: no memory), expected a result"
    )


@pytest.mark.long
def test_silence_has_the_features_of_the_job_s_engine(tmp_path: Path) -> None:
    silence = workers.silent_part(run_config("/in", tmp_path, model=tiny_model(tmp_path)))
    (row,) = silence.select(["num_mel_bins", "pad_value", "further"]).to_pylist()
    assert row["num_mel_bins"] == 80
    assert row["pad_value"] < 0
    assert not row["further"]
