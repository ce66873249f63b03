"""The table of a selection holds every row once, in files of bounded size."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.export.recordings import Index
from corpus_asr.labelling import dataset
from corpus_asr.labelling.dataset import SelectionTable
from corpus_asr.labelling.rules import SelectionTally
from corpus_asr.labelling.summary import Written, summarize
from corpus_asr.storage.run_state.tables import OutputStore


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


def test_recordings_are_done_failed_or_unfinished() -> None:
    found = {
        "succeeded": [True, True, False, False, True],
        "complete": [True, False, True, False, True],
        "duration_s": [1.0, 2.0, 4.0, 8.0, 16.0],
    }
    names = ("object", "owner", "segments_written", "counts")
    index = Index(pa.table(found), pa.table({name: pa.array([], pa.int64()) for name in names}), ())
    numbers = summarize(
        index, (), SelectionTally.of(()), Written(), uri="set", output="out", settings={}, model={}
    )
    assert (numbers.recordings, numbers.failed, numbers.unfinished) == (2, 1, 2)
    assert numbers.audio_s == 17.0
