"""Failures that are done again: chosen by kind, replaced whole, one outcome each at all times."""

import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.config.run import Retry
from corpus_asr.storage.run_state.finish import RunCounts
from corpus_asr.storage.run_state.ledger import Ledger, Reason
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import recording_id
from tests.storage.test_ledger import done as finished
from tests.support.stores import Killed, dying
from tests.support.tables import commit, files, part, results


def failed(name: str, index: int = 0, *, retryable: bool = True, **values: Any) -> dict[str, Any]:
    kind: dict[str, Any] = {"error_stage": "extract", "error_kind": "fetch", "retryable": retryable}
    return part(name, index, texts=None, status="failed", **(kind | values))


def left(store: OutputStore, *names: str, retry: Retry) -> dict[str, list[int]]:
    table = Ledger.load(store).remaining(files(*names), retry)
    return {row["uri"].lstrip("/"): row["done_parts"] for row in table.to_pylist()}


def done(store: OutputStore, *names: str) -> RunCounts:
    return finished(store, files(*names))


def statuses(folder: Path) -> dict[tuple[str, int], tuple[str, str | None]]:
    """Read the outcomes as anybody would; each part has to be there once."""
    rows = [
        row for path in (folder / "outcomes").iterdir() for row in pq.read_table(path).to_pylist()
    ]
    found = {
        (row["uri"].lstrip("/"), row["part"]): (row["status"], row["error_kind"]) for row in rows
    }
    assert len(found) == len(rows)
    return found


def reasons(store: OutputStore, ledger: Ledger, batch: pa.RecordBatch) -> dict[str, Reason]:
    rows = ledger.remaining(batch, Retry.retryable).to_pylist()
    return {row["uri"].lstrip("/"): Reason(row["reason"]) for row in rows}


def test_each_recording_is_left_for_a_reason(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(part("good", 0, texts=["x"]), failed("down")))
    commit(store, results(failed("bad", retryable=False), part("half", 0, texts=["x"], last=False)))
    commit(store, results(part("other", 0, texts=["x"], etag="v0"), failed("was", etag="v0")))
    batch = files("good", "down", "bad", "half", "other", "was", "fresh")
    assert reasons(store, Ledger.load(store), batch) == {
        "down": Reason.retried,
        "half": Reason.continued,
        "other": Reason.changed,
        "was": Reason.changed,
        "fresh": Reason.new,
    }


def test_what_is_to_be_left_alone_is_retried_with_new_content_only(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(failed("down"), failed("hopeless"), failed("was", etag="v0")))
    alone = {recording_id(f"/{name}") for name in ("hopeless", "was", "absent")}
    ledger = Ledger.load(store, leave_alone=alone)
    assert reasons(store, ledger, files("down", "hopeless", "was")) == {
        "down": Reason.retried,
        "was": Reason.changed,
    }


def mixed(store: OutputStore) -> tuple[str, ...]:
    """Commit recordings that failed in all ways, and some that did not."""
    commit(
        store, results(part("good", 0, texts=["x"]), failed("down"), failed("bad", retryable=False))
    )
    commit(store, results(
        part("half", 0, texts=["x"], last=False), failed("half", 1, last=False),
        part("half", 2, texts=["x"]), failed("both", 0, last=False, retryable=False),
        failed("both", 1),
    ))  # fmt: skip
    commit(store, results(part("unsaid", 0, texts=None, status="failed")))  # by an older version
    return ("good", "down", "bad", "half", "both", "unsaid")


def test_what_is_done_again(memory: str) -> None:
    store = OutputStore(memory)
    names = mixed(store)
    assert left(store, *names, retry=Retry.none) == {}
    retryable = {"down": [], "half": [0, 2], "both": [0]}
    assert left(store, *names, retry=Retry.retryable) == retryable
    everything = retryable | {"both": [], "bad": [], "unsaid": []}
    assert left(store, *names, retry=Retry.all) == everything


def test_a_failure_that_was_mended_is_no_longer_done_again(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    names = mixed(store)
    commit(
        store, results(part("down", 0, texts=["new"]), part("half", 1, texts=["new"], last=False))
    )
    assert left(store, *names, retry=Retry.retryable) == {"both": [0]}
    counts = done(store, *names)
    assert (counts.ok, counts.failed, counts.left) == (3, 3, 0)
    assert statuses(tmp_path)["down", 0] == ("ok", None)
    assert statuses(tmp_path)["half", 1] == ("ok", None)
    assert left(store, *names, retry=Retry.retryable) == {"both": [0]}


def test_a_failure_again_replaces_the_one_before(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    commit(store, results(failed("a")))
    commit(store, results(failed("a", error_kind="not_found", retryable=False)))
    assert left(store, "a", retry=Retry.retryable) == {}
    assert done(store, "a").failed == 1
    assert statuses(tmp_path) == {("a", 0): ("failed", "not_found")}


def test_an_end_that_failed_may_turn_out_to_be_none(tmp_path: Path) -> None:
    """A recording broke off at part 1; done again, it has four parts, and is killed on the way."""
    store = OutputStore(str(tmp_path))
    commit(store, results(part("a", 0, texts=["x"], last=False), failed("a", 1)))
    assert left(store, "a", retry=Retry.none) == {}
    commit(store, results(part("a", 1, texts=["x"], last=False), part("a", 3, texts=["x"])))
    assert left(store, "a", retry=Retry.none) == {"a": [0, 1, 3]}
    commit(store, results(part("a", 2, texts=["x"], last=False)))
    assert done(store, "a").ok == 1
    assert len(statuses(tmp_path)) == 4


def test_a_changed_file_is_done_again_whatever_became_of_the_old_one(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(failed("a", etag="v0")))
    for retry in Retry:
        assert left(store, "a", retry=retry) == {"a": []}


attempt = st.sampled_from(["ok", "no_speech", "failed", "hopeless"])


@settings(max_examples=20)
@given(history=st.lists(attempt, min_size=1, max_size=6), together=st.booleans())
def test_the_first_success_counts_else_the_last_failure(history: list[str], together: bool) -> None:
    store = OutputStore(f"memory://{uuid.uuid4().hex}")
    rows = []
    for number, what in enumerate(history):
        status = "failed" if what == "hopeless" else what
        texts = [f"text {number}"] if what == "ok" else [] if what == "no_speech" else None
        rows.append(
            part("a", 0, texts=texts, status=status, retryable=what == "failed", attempts=number)
        )
    for batch in [rows] if together else [[row] for row in rows]:
        commit(store, results(*batch))
    good = [number for number, what in enumerate(history) if what in ("ok", "no_speech")]
    expected = good[0] if good else len(history) - 1
    again: dict[str, list[int]] = {"a": []} if not good and history[-1] == "failed" else {}
    assert left(store, "a", retry=Retry.retryable) == again
    for _ in range(2):
        done(store, "a")
        [row] = [row for batch in store.outcomes() for row in batch.to_pylist()]
        assert row["attempts"] == expected
        said = [row["text"] for batch in store.segments() for row in batch.to_pylist()]
        assert said == ([f"text {expected}"] if history[expected] == "ok" else [])


def test_a_retry_killed_anywhere_ends_exact() -> None:
    """Two failures are mended in two commits; the finish is killed at every step, then repeated."""
    for moment in range(0, 100, 3):
        store = OutputStore(f"memory://{uuid.uuid4().hex}")
        names = mixed(store)
        steps = iter(range(moment))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("write_atomic", "remove"):
                patch.setattr(filesystem, name, dying(getattr(filesystem, name), steps))
            try:
                commit(store, results(part("down", 0, texts=["new"])))
                commit(store, results(part("half", 1, texts=["new"], last=False)))
                done(store, *names)
            except Killed:
                pass
            else:
                break
        for name, parts in left(store, *names, retry=Retry.retryable).items():
            for index in {"down": [0], "half": [1], "both": [1]}[name]:
                assert index not in parts
                commit(store, results(part(name, index, texts=["new"], last=index == 0)))
        assert left(store, *names, retry=Retry.none) == {"both": [0, 1]}
        commit(store, results(part("both", 2, texts=["new"])))
        counts = done(store, *names)
        assert (counts.ok, counts.failed, counts.left) == (3, 3, 0)
        rows = [row for batch in store.outcomes(["uri", "part"]) for row in batch.to_pylist()]
        assert len({(row["uri"], row["part"]) for row in rows}) == len(rows) == 10
    assert moment > 8
