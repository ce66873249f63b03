"""Segments are found in the order of the outcomes that claim them."""

import random

import pyarrow as pa

from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.settlement import claimed_segments
from tests.support.commits import commit, part, results


def test_segments_come_in_the_order_of_their_outcomes(memory: str) -> None:
    """Many objects, since a hash table may look sorted while it is small."""
    store, chance = OutputStore(memory), random.Random(1)
    for number in range(40):
        rows = [
            part(f"{number}-{index}", 0, texts=["x"] * chance.randint(0, 2)) for index in range(3)
        ]
        commit(store, results(*rows))
    from_outcomes = [
        row["uri"] for batch in store.committed() for row in batch.rows.to_pylist()
        for _ in range(row["segments_written"])
    ]  # fmt: skip
    outcomes = pa.Table.from_batches([batch.rows for batch in store.committed()], OUTCOMES)
    found = [uri for table in claimed_segments(store, outcomes, "all")
             for uri in table["uri"].to_pylist()]  # fmt: skip
    assert found == from_outcomes
