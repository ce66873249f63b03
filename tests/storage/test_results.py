"""Parts with labels are committed, merged, counted and tidied up as parts with segments are."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.schemas import LABELS, OUTCOMES
from corpus_asr.storage.recordings import aggregate
from corpus_asr.storage.results import LABEL_ROWS, outcomes_of, part_rows_named, rows_of
from corpus_asr.storage.run_state.finish import finish
from corpus_asr.storage.run_state.start import Run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stems import unique_stem
from tests.support.commits import commit, files, part, results, same_schema

RUN = Run(run_id="run", fingerprint="f", started_at="2026-01-01T00:00:00+00:00", continues=False)
CONFIG = RunConfig.model_validate(
    {
        "pipeline": "classify_audio",
        "source": {"uri": "/x"},
        "model": {"checkpoint": "m"},
        "output": {"uri": "/y"},
    }
)


def labelled(
    name: str, index: int, *means: tuple[str, float], weight_s: float = 1.0, **values: Any
) -> dict[str, Any]:
    """Return a RESULTS row of a part whose one window has these labels, as has the part."""
    rows = [
        {"window": 0, "start_s": 10.0 * index, "end_s": 10.0 * index + 9, "weight_s": weight_s,
         "rank": rank, "label": label, "probability": probability}
        for rank, (label, probability) in enumerate(means, start=1)
    ]  # fmt: skip
    return part(
        name, index, texts=None, labels=rows, label=means[0][0] if means else None,
        label_probability=means[0][1] if means else None,
        label_means=[{"label": label, "probability": share} for label, share in means],
        label_weight_s=weight_s, **values,
    )  # fmt: skip


def rows(batches: Any) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.to_pylist()]


def test_many_small_commits_of_labels_become_one(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    names = "dacb"
    for index in (1, 0):
        for name in names:
            found = labelled(name, index, ("en", 0.75), ("de", 0.25), last=index == 1)
            commit(store, results(found))
    commit(store, results(labelled("a", 0, ("fr", 1.0), last=False)))  # a second one, which loses
    orphan = rows_of(results(labelled("z", 0, ("fr", 1.0))), LABEL_ROWS, run_id="r", model=("", ""))
    store.write_table(f"labels/{unique_stem()}.parquet", orphan)
    assert len(rows(store.labels())) == 17
    assert rows(store.segments()) == []
    listing = files(*names)
    counts = finish(
        store, RUN, CONFIG, model_revision="r", listing=[listing], num_listed=listing.num_rows
    )
    assert (counts.left, counts.ok, counts.segments) == (0, 4, 16)
    (name,) = store.names("labels")
    assert store.names("segments") == []
    assert same_schema(store.read_table(name, LABELS).schema, LABELS)
    told = [(row["uri"], row["part"], row["rank"], row["label"]) for row in rows(store.labels())]
    assert told == [
        (f"/{name}", index, rank, label)
        for name in sorted(names)
        for index in (0, 1)
        for rank, label in ((1, "en"), (2, "de"))
    ]
    assert {row["label"] for row in rows(store.recordings())} == {"en"}


def test_a_recordings_label_is_the_mean_of_its_parts_by_their_weights() -> None:
    found = [
        labelled("a", 0, ("en", 0.6), ("de", 0.4), weight_s=10.0, last=False),
        labelled("a", 1, ("de", 0.9), ("en", 0.1), weight_s=30.0),
        labelled("b", 0, ("sv", 0.5), ("da", 0.5)),
        labelled("c", 0),
        part("d", 0, texts=None, status="no_speech"),
    ]
    outcomes: pa.Table = outcomes_of(results(*found), run_id="run").cast(OUTCOMES)
    told = {row["uri"]: row for row in aggregate(outcomes).to_pylist()}
    assert told["/a"]["label"] == "de"
    assert told["/a"]["label_probability"] == pytest.approx((0.4 * 10 + 0.9 * 30) / 40)
    assert told["/b"]["label"] == "da"  # of two as likely, the first by name
    for name in ("/c", "/d"):
        assert (told[name]["label"], told[name]["label_probability"]) == (None, None)


def test_a_part_has_segments_or_labels(tmp_path: Path) -> None:
    both = results(labelled("a", 0, ("en", 1.0)), part("b", 0, texts=["text"]))
    with pytest.raises(ValueError, match="found segments and labels, expected one of them"):
        commit(OutputStore(str(tmp_path)), both)
    with pytest.raises(ValueError, match="found segments and labels"):
        part_rows_named(["labels/1.parquet", None, "segments/2.parquet"])


def test_rows_name_the_model_for_their_language(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    spoken = [("a", "de"), ("b", "en"), ("c", None), ("d", "fr")]
    table = results(*(part(name, 0, texts=["x"], language=code) for name, code in spoken))
    others = {"de": ("german", "1"), "fr": ("https://user:secret@host/french", "2")}
    store.commit(table, run_id="run", model="main", model_revision="0", by_language=others)
    named = {row["uri"]: (row["model"], row["model_revision"]) for row in rows(store.segments())}
    assert named == {
        "/a": ("german", "1"),
        "/b": ("main", "0"),
        "/c": ("main", "0"),
        "/d": ("https://host/french", "2"),
    }
