"""The table of a selection holds every row once, in files of bounded size."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from corpus_asr.labelling import dataset
from corpus_asr.labelling.dataset import SelectionTable
from corpus_asr.labelling.rules import SelectionTally
from corpus_asr.labelling.summary import Written, summarize
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import commit, part, results


def test_rows_are_spread_over_files_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_ROWS_OF_A_TABLE", 2)
    monkeypatch.setattr(dataset, "_ROWS_OF_A_FILE", 4)
    table = SelectionTable(OutputStore(str(tmp_path)))
    for recording in range(5):
        table.add([{"recording_id": str(recording), "text": str(at)} for at in range(3)])
    table.close()
    files = sorted((tmp_path / "selection").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [6, 6, 3]
    rows = pq.read_table(tmp_path / "selection").to_pylist()
    expected = [(str(recording), str(at)) for recording in range(5) for at in range(3)]
    assert [(row["recording_id"], row["text"]) for row in rows] == expected


def test_a_selection_without_rows_is_a_table_all_the_same(tmp_path: Path) -> None:
    SelectionTable(OutputStore(str(tmp_path))).close()
    assert pq.read_table(tmp_path / "selection").num_rows == 0


def test_recordings_are_done_failed_or_unfinished(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    commit(store, results(
        part("done", 0, texts=["x"], part_end_s=1.0),
        part("half", 0, texts=["x"], part_end_s=2.0, last=False),
        part("failed", 0, texts=None, status="failed", part_end_s=4.0),
        part("begun", 0, texts=None, status="failed", part_end_s=8.0, last=False),
        part("silent", 0, texts=None, status="no_speech", part_end_s=16.0),
    ))  # fmt: skip
    with RunTables(store) as tables:
        numbers = summarize(
            tables, (), SelectionTally.of(()), Written(), uri="set", output="out", settings={},
            model={},
        )  # fmt: skip
    assert (numbers.recordings, numbers.failed, numbers.unfinished) == (2, 1, 2)
    assert numbers.audio_s == 17.0
