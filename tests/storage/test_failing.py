"""Failures are counted by run and by content, whatever became of the runs."""

from typing import Any

from corpus_asr.storage.failing import count_tries, note_tries
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.commits import commit, part, results


def failed(name: str, **values: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"retryable": True, "error_kind": "timeout", "error_stage": "extract"}
    return part(name, 0, texts=None, status="failed", **(usual | values))


def night(store: OutputStore, number: int, *rows: dict[str, Any]) -> dict[str, int]:
    """Commit rows as that run, and return the tries noted after it."""
    if rows:
        commit(store, results(*rows), run_id=f"night-{number}")
    failing = count_tries(store)
    note_tries(store, failing)
    return {one.uri.lstrip("/"): one.tries for one in failing}


def test_each_run_that_failed_on_a_recording_counts_once(memory: str) -> None:
    store = OutputStore(memory)
    assert night(store, 1) == {}
    assert night(store, 1, failed("a"), failed("bad", retryable=False)) == {"a": 1}
    assert night(store, 1) == {"a": 1}, "nothing was tried since"
    assert night(store, 2, failed("b")) == {"a": 1, "b": 1}
    assert night(store, 3, failed("a"), part("good", 0, texts=["x"])) == {"a": 2, "b": 1}
    commit(store, results(failed("a")), run_id="night-4")
    assert night(store, 5, failed("a")) == {"a": 3, "b": 1}, "only the last run is known"


def test_new_content_is_counted_anew(memory: str) -> None:
    store = OutputStore(memory)
    night(store, 1, failed("a"), failed("b"))
    assert night(store, 2, failed("a", etag="v2"), failed("b", size_bytes=9)) == {"a": 1, "b": 1}
    assert night(store, 3, failed("a", etag="v2")) == {"a": 2, "b": 1}
