import pyarrow as pa

from corpus_asr.runtime.local import CommitBuffer
from tests.support.tables import results_of


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_small_results_are_committed_together_and_in_order():
    commits: list[pa.Table] = []
    buffer = CommitBuffer(commits.append, min_bytes=1 << 20, max_age_s=10, clock=Clock())
    for part in range(3):
        buffer.add(results_of({"part": part}))
    assert commits == []
    buffer.flush()
    buffer.flush()
    assert [table.column("part").to_pylist() for table in commits] == [[0, 1, 2]]


def test_a_large_result_is_committed_at_once():
    commits: list[pa.Table] = []
    buffer = CommitBuffer(commits.append, min_bytes=1000, max_age_s=10, clock=Clock())
    buffer.add(results_of({"error_message": "x" * 2000}))
    assert len(commits) == 1


def test_nothing_waits_longer_than_its_age():
    commits: list[pa.Table] = []
    clock = Clock()
    buffer = CommitBuffer(commits.append, min_bytes=1 << 20, max_age_s=10, clock=clock)
    buffer.add(results_of({}))
    clock.now_s += 9
    buffer.poll()
    assert commits == []
    clock.now_s += 1
    buffer.poll()
    assert len(commits) == 1
