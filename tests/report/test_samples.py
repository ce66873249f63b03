"""What is chosen from a run's tables for its page, however its rows are spread over objects."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from corpus_asr.report import samples
from corpus_asr.report.html.page import write_page
from corpus_asr.report.nightly import findings_of
from corpus_asr.report.run import counted_run
from corpus_asr.report.samples import SAMPLES, Details, Sampler, count_words
from corpus_asr.schemas import OUTCOMES, SEGMENTS
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id


def wide(schema: pa.Schema, columns: dict[str, pa.Array], rows: int) -> pa.Table:
    """Return a table of a schema; columns that are not given are null."""
    return pa.table(
        [columns.get(field.name, pa.nulls(rows)).cast(field.type) for field in schema],
        schema=schema,
    )


def corpus(folder: Path, recordings: int, *, each: int = 2, objects: int = 3) -> OutputStore:
    """Write recordings of `each` segments over some objects; their confidence rises."""
    store = OutputStore(str(folder))
    store.write_json(CONFIG_NAME, {"model": {"checkpoint": "some/model"}})
    for numbers in np.array_split(np.arange(recordings), objects):
        uris = [f"/audio/{number:07d}.wav" for number in numbers]
        ids = pa.array([recording_id(uri) for uri in uris])
        count, total = len(numbers), len(numbers) * each
        outcomes = {
            "run_id": pa.repeat("run", count), "recording_id": ids, "uri": pa.array(uris),
            "part": pa.repeat(0, count), "last_part": pa.repeat(True, count),
            "duration_s": pa.array(np.full(count, 20.0)), "status": pa.repeat("ok", count),
            "language": pa.repeat("en", count), "segments_written": pa.repeat(each, count),
            "decode_s": pa.array(numbers / 1000.0), "transcribe_s": pa.array(np.zeros(count)),
        }  # fmt: skip
        owners = pa.array(np.repeat(np.arange(count), each))
        place = np.tile(np.arange(each), count)
        segments = {
            "run_id": pa.repeat("run", total), "recording_id": ids.take(owners),
            "uri": pa.array(uris).take(owners), "part": pa.repeat(0, total),
            "segment": pa.array(place), "start_s": pa.array(place * 1.0),
            "end_s": pa.array(place + 1.0),
            "text": pa.array([f" number {number} said" for number in np.repeat(numbers, each)]),
            "language": pa.repeat("en", total),
            "confidence": pa.array(np.repeat(numbers / recordings, each)),
        }  # fmt: skip
        store.write_commit(wide(OUTCOMES, outcomes, count), [wide(SEGMENTS, segments, total)])
    return store


def gathered(store: OutputStore) -> Details:
    with counted_run(store, sampler := Sampler(store)) as (_, tables):
        return sampler.details(tables)


def test_the_least_confident_are_found_and_the_draw_stays(tmp_path: Path) -> None:
    store = corpus(tmp_path, 500, each=3)
    found = gathered(store)
    # Two of each recording at most, the least sure first.
    assert [one.text for one in found.unsure] == [
        f" number {number // 2} said" for number in range(SAMPLES)
    ]
    assert [one.start_s for one in found.unsure[:2]] == [0.0, 1.0]
    assert found.durations == (0, 500, 0, 0, 0, 0, 0, 0, 0)
    assert (found.words, found.words_estimated) == (4500, False)
    assert len({(one.uri, one.start_s) for one in found.random}) == SAMPLES
    assert max(one.confidence for one in found.random) > 0.5
    assert gathered(store) == found


def test_parts_committed_again_change_nothing(tmp_path: Path) -> None:
    found = gathered(corpus(tmp_path, 40))
    again = corpus(tmp_path, 40)
    assert len(again.names("segments")) == 6
    assert gathered(again) == found


def test_each_object_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = corpus(tmp_path, 50), Counter[str]()
    batches = OutputStore.batches

    def counted(self: OutputStore, name: str, **options: Any) -> Iterator[pa.RecordBatch]:
        read[name] += 1
        return batches(self, name, **options)

    monkeypatch.setattr(OutputStore, "batches", counted)
    found = gathered(store)
    assert found.words == 300
    assert read == dict.fromkeys((*store.names("outcomes"), *store.names("segments")), 1)
    read.clear()
    findings, _ = findings_of(store, "run", low_confidence=0.5)
    assert (findings.done, findings.low_confidence) == (50, 25)
    assert set(read.values()) == {1}


def test_of_many_segments_words_are_estimated_and_the_page_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = corpus(tmp_path / "output", 5_000)
    monkeypatch.setattr(samples, "COUNT_ALL_WORDS", 9_999)
    monkeypatch.setattr(samples, "_AROUND", 5)
    found = gathered(store)
    assert (found.words, found.words_estimated) == (30_000, True)
    write_page(store, str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").stat().st_size < 120_000


def test_words_are_letters_where_no_blanks_part_them() -> None:
    rows = pa.table(
        {"text": [" two  words", "こん にちは", "", None], "language": ["en", "ja", "en", None]}
    )
    assert count_words(rows) == 2 + 5
