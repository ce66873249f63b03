"""Rows of one recording do not get into another's, however many there are."""

import pyarrow as pa

from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.recordings import aggregate
from corpus_asr.storage.results import outcomes_of
from tests.support.commits import part, results


def test_each_of_many_recordings_keeps_its_own() -> None:
    """Many, since a hash table may look sorted while it is small."""
    rows = [
        part(f"r{number}", index, texts=["x"] * (number % 3 + 1), last=index == 1,
             language=f"l{number}" if index else f"l{number % 7}", codec=f"c{number}",
             speech_s=float(number))
        for number in range(300) for index in range(2)
    ]  # fmt: skip
    outcomes: pa.Table = outcomes_of(results(*rows), run_id="run").cast(OUTCOMES)
    found = aggregate(outcomes)
    assert found["recording_id"].to_pylist() == sorted(found["recording_id"].to_pylist())
    recordings = {row["uri"]: row for row in found.to_pylist()}
    assert len(recordings) == 300
    for number in range(300):
        row = recordings[f"/r{number}"]
        assert set(row["languages"]) == {f"l{number}", f"l{number % 7}"}
        assert (row["codec"], row["speech_s"]) == (f"c{number}", 2.0 * number)
        assert (row["parts"], row["segments"]) == (2, 2 * (number % 3 + 1))
