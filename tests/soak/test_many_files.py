"""What a run costs that has nothing left to do: seconds, memory, and per file."""

import logging
from pathlib import Path

import pytest

from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.many_files import ROWS_PER_COMMIT, Cost, build, cost_of_resuming
from tests.support.tables import stored_segments

logger = logging.getLogger(__name__)  # shown by --log-cli-level=INFO

LIMIT_S = 60.0
LIMIT_MIB = 1024.0


def check_counts(cost: Cost, folder: Path, *, files: int, objects: int) -> None:
    assert (cost.listed, cost.objects) == (files, objects)
    store = OutputStore(str(folder / "output"))
    # Files that are not of one order of size are left apart.
    assert len(store.names("outcomes")) == len(store.names("segments")) <= 3
    assert sum(batch.num_rows for batch in stored_segments(store, ["part"])) == files
    assert sum(batch.num_rows for batch in store.recordings(["uri"])) == files


@pytest.mark.slow
@pytest.mark.parametrize("source", ["listing", "manifest"])
def test_a_hundred_thousand_finished_files_take_less_than_a_minute_and_a_gibibyte(
    tmp_path: Path, source: str
) -> None:
    files = 100_000
    build(tmp_path, files, source)
    first = cost_of_resuming(tmp_path, source)  # merges a thousand commits, too
    check_counts(first, tmp_path, files=files, objects=files // ROWS_PER_COMMIT)
    later = cost_of_resuming(tmp_path, source)
    assert later.objects <= 3
    check_counts(later, tmp_path, files=files, objects=later.objects)
    for cost in (first, later):
        # Processor time: on a machine that others use the clock says little.
        logger.info("%s %s: %.0f us/file", source, cost, 1e6 * cost.cpu_s / files)
        assert cost.cpu_s < LIMIT_S
        assert cost.peak_mib < LIMIT_MIB
