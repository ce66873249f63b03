"""Metrics follow the counts, whatever is lost, and the documentation names every one."""

import re
from collections import Counter as Counts
from pathlib import Path

import pytest
import ray

from corpus_asr.activity import Activity
from corpus_asr.runtime import coordinator as exporting
from corpus_asr.runtime.coordinator import (
    COMMIT_SECONDS,
    COMMITTED,
    NOW,
    PREFIX,
    RECORDINGS,
    WORKED,
    Metrics,
    Reporter,
    RunCoordinator,
    start_coordinator,
)
from corpus_asr.runtime.progress import Tally

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "watching.md"


class Exported:
    """Stands in for Ray's metrics: keeps what they were given."""

    def __init__(self) -> None:
        self.added: Counts[str] = Counts()
        self.shown: dict[str, float] = {}

    def metric(self, name: str, description: str, *_: object, **__: object) -> "Exported.One":
        assert description
        return self.One(self, name)

    class One:
        def __init__(self, exported: "Exported", name: str) -> None:
            self._exported, self._name = exported, name

        def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
            assert value > 0
            self._exported.added[" ".join([self._name, *(tags or {}).values()])] += value  # type: ignore[assignment]

        def set(self, value: float) -> None:
            self._exported.shown[self._name] = value

        observe = inc


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    found = Exported()
    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(exporting, name, found.metric)
    return found


def test_counters_grow_by_what_is_new_and_never_shrink(exported: Exported) -> None:
    metrics = Metrics()
    metrics.update(Tally(files=3, failed=1, audio_s=10.0), Activity(tokens=5, fetch_retries=1))
    metrics.update(Tally(files=5, failed=2, audio_s=15.0), Activity(tokens=9, fetch_retries=1))
    metrics.update(Tally(), Activity())  # the board was lost: it begins anew
    metrics.update(Tally(files=1), Activity(tokens=1))
    metrics.committed(0.5)
    assert exported.added == {
        "corpus_asr_audio_seconds_total": 15.0,
        "corpus_asr_recordings_total done": 4,
        "corpus_asr_recordings_total failed": 2,
        "corpus_asr_tokens_total": 10,
        "corpus_asr_fetch_retries_total": 1,
        "corpus_asr_commit_seconds": 0.5,
    }


def test_gauges_show_now(exported: Exported) -> None:
    metrics = Metrics()
    metrics.update(Tally(), Activity(slot_steps=8, slot_room=8, parts_extracted=3, parts_begun=1))
    metrics.update(Tally(), Activity(slot_steps=10, slot_room=16, parts_begun=1))
    metrics.update(Tally(), Activity(slot_steps=10, slot_room=16))  # nothing was decoded since
    assert exported.shown == {
        "corpus_asr_slot_occupancy": 0.25,
        "corpus_asr_parts_ready": 0,
        "corpus_asr_parts_in_engines": 0,
    }


def test_the_board_adds_up_workers_and_replaces_what_one_sent_before(exported: Exported) -> None:
    board = RunCoordinator()
    board.report("one", Activity(tokens=3))
    board.report("two", Activity(tokens=4, slots=8))
    board.report("one", Activity(tokens=5))
    board.add(Tally(parts=1, files=1), Activity(commits=1, commit_s=0.25))
    assert board.replace("no memory")
    assert board.activity() == Activity(
        tokens=9, slots=8, commits=1, commit_s=0.25, workers_replaced=1
    )
    assert exported.added["corpus_asr_tokens_total"] == 9


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_metrics_cost_nothing_where_nobody_exports_them() -> None:
    board = start_coordinator()
    Reporter(board, lambda: Activity(tokens=3, slot_steps=1, slot_room=2)).send()
    board.add.remote(Tally(parts=1, files=1, audio_s=3.0), Activity(commits=1, commit_s=0.1))
    assert ray.get(board.read.remote()).audio_s == 3.0
    assert ray.get(board.activity.remote()).tokens == 3


def test_every_metric_is_documented_and_no_other() -> None:
    names = {one.name for one in (*COMMITTED, *WORKED, *NOW, RECORDINGS, COMMIT_SECONDS)}
    documented = re.findall(rf"`ray_{PREFIX}(\w+)`", DOCUMENT.read_text())
    assert set(documented) == names
    assert len(documented) == len(names)
