from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import corpus_asr
from corpus_asr.config.hooks import HookSettings
from corpus_asr.errors import ConfigError
from corpus_asr.export.hooks import VectorColumn, with_values
from corpus_asr.runtime.hooks import run_hook
from corpus_asr.storage.run_state.hook_rows import folder_of, schema_of
from corpus_asr.storage.run_state.recording_rows import put_rows
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.repo.sources import REPOSITORY
from tests.support.runs import finished, passage, run_of, spoken

VECTORS = HookSettings(name="v", function="m:f", columns={"vector": "list<float32>"})
COUNT = 300


def written(store: OutputStore, vectors: np.ndarray, *, first: int = 0) -> None:
    """Put an object with a recording of one segment for each vector."""
    schema = schema_of(VECTORS)
    rows = [
        {"recording_id": recording_id(f"/{first + at}"), "uri": f"/{first + at}", "part": 0,
         "segment": 0, "start_s": float(first + at), "end_s": first + at + 1.0, "made_of": "x",
         "vector": vector}
        for at, vector in enumerate(vectors.tolist())
    ]  # fmt: skip
    put_rows(store, folder_of("v"), pa.Table.from_pylist(rows, schema))


def test_the_nearest_are_those_of_all_cosines(tmp_path: Path):
    store = OutputStore(str(tmp_path))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(COUNT, 8)).astype(np.float32)
    for first in range(0, COUNT, 100):
        written(store, vectors[first : first + 100], first=first)
    column = VectorColumn.find(store)
    assert column == VectorColumn("v", "vector")
    near = column.nearest(store, recording_id("/7"), start_s=7.0, count=20)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit[7]
    expected = [at for at in np.argsort(-likeness).tolist() if at != 7][:20]
    assert [round(each.start_s) for each in near or ()] == expected
    np.testing.assert_allclose(
        [each.likeness for each in near or ()], likeness[expected], atol=1e-5
    )


def test_what_has_no_vector_of_that_length_is_not_near(tmp_path: Path):
    store = OutputStore(str(tmp_path))
    written(store, np.array([[1.0, 0.0], [0.5, 0.5]]))
    written(store, np.array([[1.0, 0.0, 0.0], [np.nan, 0.0, 1.0]]), first=2)
    column = VectorColumn("v", "vector")
    near = column.nearest(store, recording_id("/0"), start_s=0.0) or []
    assert [(each.start_s, round(each.likeness, 3)) for each in near] == [
        (1.0, 0.707), (2.0, -1.0), (3.0, -1.0)
    ]  # fmt: skip
    assert column.nearest(store, recording_id("/0"), start_s=0.5) is None
    assert column.nearest(store, recording_id("/9"), start_s=0.0) is None


def test_the_newest_rows_of_a_recording_count(tmp_path: Path):
    store = OutputStore(str(tmp_path))
    written(store, np.array([[1.0, 0.0], [1.0, 0.0]]))
    written(store, np.array([[0.0, 1.0]]))  # of the first, after a finish that was killed
    near = VectorColumn("v", "vector").nearest(store, recording_id("/1"), start_s=1.0)
    assert [(each.start_s, each.likeness) for each in near or ()] == [(0.0, 0.0)]


def test_only_vectors_of_segments_are_found(tmp_path: Path):
    store = run_of(tmp_path / "out", spoken("/a", passage(0, "one")))
    finished(store, "/a")
    assert VectorColumn.find(store) is None
    hook = HookSettings(
        name="texts", function="tests.support.hooks:redact",
        columns={"redacted": "string", "digits": "int64"},
    )  # fmt: skip
    run_hook(store, hook)
    assert VectorColumn.find(store) is None


def test_a_table_leaves_out_what_tells_nothing(tmp_path: Path):
    store = run_of(tmp_path / "out", spoken("/a", passage(0, "one 1")), spoken("/b"))
    finished(store, "/a", "/b")
    hook = HookSettings(
        name="redact", function="tests.support.hooks:redact",
        columns={"redacted": "string", "digits": "int64"},
    )  # fmt: skip
    run_hook(store, hook)
    table = corpus_asr.read_hook(store.uri, "redact")
    assert table.num_rows == 1
    assert with_values(table.slice(0, 0).select(["recording_id", "uri"])).num_rows == 0
    assert table.schema.names[-2:] == ["digits", "redacted"]
    with pytest.raises(ConfigError, match="found the tables of redact"):
        corpus_asr.read_hook(store.uri, "other")


def test_the_examples_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs/examples"))
    texts = ["the train to London", "a railway journey at 5", "my cat sleeps"]
    store = run_of(
        tmp_path / "out", *(spoken(f"/{at}", passage(0, text)) for at, text in enumerate(texts))
    )
    finished(store, "/0", "/1", "/2")
    examples: dict[str, dict[str, Any]] = {
        "redact": {"function": "hooks:redact_numbers",
                   "columns": {"redacted": "string", "digits": "int64"}},
        "meaning": {"function": "hooks:Embeddings", "columns": {"vector": "list<float32>"}},
    }  # fmt: skip
    for name, values in examples.items():
        assert run_hook(store, HookSettings(name=name, **values)).recordings == 3
    redacted = corpus_asr.read_hook(store.uri, "redact").sort_by("uri")["redacted"].to_pylist()
    assert redacted == [f" {text.replace('5', '#')}" for text in texts]
    column = VectorColumn.find(store)
    assert column == VectorColumn("meaning", "vector")
    near = column.nearest(store, recording_id("/0"), start_s=0.0)
    assert [each.recording_id for each in near or ()] == [recording_id("/1"), recording_id("/2")]
    assert [each.likeness > 0.4 for each in near or ()] == [True, False]
