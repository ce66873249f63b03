"""The stage for pipelines of others: a batch of any kind in, the same with texts or errors out."""

import contextlib
import io
import pickle
import re
import shutil
import threading
import wave
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data._internal.tensor_extensions.arrow import convert_to_pyarrow_array

from corpus_asr import Transcribe
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.failure_kinds import FAILURE_KINDS
from corpus_asr.runtime import batches
from corpus_asr.runtime.ray_cluster import Cluster
from corpus_asr.schemas import BATCH_COLUMNS
from tests.repo.sources import REPOSITORY

pytestmark = pytest.mark.long

SPEECH = REPOSITORY / "tests" / "data" / "speech" / "english_short"
CLIP = str(SPEECH / "cheetah_en.wav")
TEXT = "Today, only platforms 1 and 3 are used."
SILENCE = np.zeros(16_000, dtype=np.float32)


@pytest.fixture(scope="module")
def transcribe() -> Iterator[Transcribe]:
    stage = Transcribe("whisper-tiny.en", beam_size=1, slots=2)
    yield stage
    stage.close()


def samples() -> np.ndarray:
    with wave.open(CLIP) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)


def test_a_bad_row_is_a_row_with_its_error(transcribe: Transcribe) -> None:
    stereo = np.stack([samples(), samples()])
    rows: list[tuple[Any, Any, str | None, str]] = [
        (samples(), 16_000, None, ""),
        ([*map(float, SILENCE)], np.int64(16_000), None, ""),
        (stereo.astype(np.float16) / 32_768, 16_000.0, None, ""),
        (None, None, None, "found a NoneType, expected a path"),
        (float("nan"), 16_000, None, "found a NoneType, expected a path"),
        (SILENCE, None, None, "without a sampling rate"),
        (SILENCE, 0, None, "found sampling_rate=0"),
        (SILENCE.astype(np.int32), 16_000, None, "found an array of int32"),
        (stereo.T, 16_000, None, "transpose it"),
        ([[0.0], [0.0, 0.0]], 16_000, None, "found a list"),
        (np.full(9, np.nan), 16_000, None, "NaN"),
        ("gone.wav", None, None, "not found"),
        (None, None, "gone too.wav", "not found"),
        (b"<html>not found</html>", None, "page.wav", "page.wav"),
        (b"", None, "empty.wav", "empty file"),
        ({"bytes": None, "path": None}, None, None, "found a dictionary"),
        ({"array": [*map(float, SILENCE)], "sampling_rate": 16_000}, None, None, ""),
        (CLIP, None, None, ""),
        (CLIP, None, None, ""),
    ]
    audios, rates, paths, expected = zip(*rows, strict=True)
    batch: dict[str, Any] = {"audio": [*audios], "sampling_rate": [*rates], "path": [*paths]}
    found = transcribe(batch)
    assert [*found] == [*batch, *BATCH_COLUMNS.names]
    good = [number for number, words in enumerate(expected) if not words]
    for number, words in enumerate(expected):
        error = found["error"][number]
        assert (error is None) == (number in good), error
        assert words in (error or ""), error
        assert (found["text"][number] is None) == bool(words)
        assert found["error_kind"][number] in {*FAILURE_KINDS} if words else error is None
    texts = [found["text"][number] for number in good]
    assert texts == [TEXT, "", TEXT, "", TEXT, TEXT]
    assert found["duration_s"][0] == pytest.approx(4.464)
    assert 0.8 < found["confidence"][0] <= 1
    (segment,) = found["segments"][0]
    assert (segment["text"].strip(), segment["channel"]) == (TEXT, None)


def test_a_decoder_that_fails_is_a_row_with_its_error(transcribe: Transcribe) -> None:
    class Damaged:
        def get_all_samples(self) -> None:
            raise RuntimeError("no packet")

    found = transcribe({"audio": [Damaged(), CLIP]})
    assert found["error_kind"] == ["internal", None]
    assert "no packet" in found["error"][0]


def test_a_failure_is_logged_with_the_stage_where_it_happened(
    transcribe: Transcribe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Damaged:
        def get_all_samples(self) -> None:
            raise RuntimeError("no packet")

    failed: Future[Any] = Future()
    failed.set_exception(RuntimeError("no kernel"))
    transcribe({"path": [CLIP]})  # loads the model
    assert transcribe._transcriber is not None
    monkeypatch.setattr(transcribe._transcriber._engine, "submit", lambda _: failed)
    found = transcribe({"audio": [Damaged(), CLIP]})
    assert [*map(str, found["error"])] == ["RuntimeError: no packet", "RuntimeError: no kernel"]
    stages = re.findall(r"event=part_failed .*stage=(\w+)", caplog.text)
    assert stages == ["extract", "transcribe"]


def test_a_batch_returns_as_what_it_was(transcribe: Transcribe) -> None:
    files = pa.array([Path(CLIP).read_bytes(), b"", None], pa.binary())
    table = pa.table({"id": [1, 2, 3], "bytes": files, "uri": ["a", "b", CLIP]})
    found = transcribe(table)
    assert found.schema == pa.schema([*table.schema, *BATCH_COLUMNS])
    assert found["text"].to_pylist() == [TEXT, None, TEXT]
    assert found["error_kind"].to_pylist() == [None, "empty_file", None]
    frame = pd.DataFrame({"audio": [{"bytes": files[0].as_py(), "path": None}, {}]}, index=[7, 9])
    framed = transcribe(frame)
    assert [*framed.columns] == ["audio", *BATCH_COLUMNS.names]
    assert [*framed.index] == [7, 9]
    assert framed["text"][7] == TEXT
    assert framed["confidence"].isna().tolist() == [False, True]
    arrays = {"amplitude": np.zeros((2, 1, 16_000), np.float32), "sample_rate": np.full(2, 16_000)}
    silent = transcribe(arrays)
    assert {len(column) for column in silent.values()} == {2}
    assert silent["text"] == ["", ""]
    nested = pa.table({"array": [[SILENCE[:800]] * 2], "sampling_rate": [16_000]})
    assert transcribe(nested)["duration_s"].to_pylist() == [pytest.approx(0.05)]


class Frame:
    """A table of another library, which exports it to Arrow, as one of polars."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def test_other_tables_of_arrow_and_arrow_columns_are_batches(transcribe: Transcribe) -> None:
    paths = pa.array([CLIP, "gone.wav"], pa.string_view())
    found = transcribe(pa.record_batch({"path": paths}))
    assert isinstance(found, pa.RecordBatch)
    assert [*found.schema][1:] == [*BATCH_COLUMNS]
    assert found["text"].to_pylist() == [TEXT, None]
    framed = transcribe(Frame(pa.table({"path": paths})))
    assert isinstance(framed, Frame)
    assert framed.table["error_kind"].to_pylist() == [None, "not_found"]
    assert transcribe({"path": paths})["text"] == [TEXT, None]


@pytest.mark.parametrize("batch", [[{"path": CLIP}], CLIP, None, b"RIFF", pd.Series([CLIP])])
def test_what_is_no_batch_is_refused_before_any_work(batch: Any) -> None:
    with pytest.raises(ConfigError, match=r"found a \w+, expected an Arrow table"):
        Transcribe("./no-such-folder")(batch)


@pytest.mark.parametrize("row", [
    {"path": CLIP},
    {"path": Path(CLIP)},
    {"bytes": Path(CLIP).read_bytes(), "path": None},
    {"bytes": None, "path": CLIP},
    {"audio": {"path": CLIP, "bytes": None}, "id": 3},
    {"audio": {"array": samples(), "sampling_rate": 16_000}},
    {"array": samples(), "sampling_rate": 16_000},
    {"amplitude": (samples() / 32_768)[np.newaxis], "sample_rate": np.int64(16_000)},
    {"array": (samples() / 32_768).tolist(), "sampling_rate": 16_000},
])  # fmt: skip
def test_one_row_returns_as_one_row(transcribe: Transcribe, row: dict[str, Any]) -> None:
    found = transcribe(row)
    assert [*found] == [*row, *BATCH_COLUMNS.names]
    assert (found["text"], found["error_kind"], found["language"]) == (TEXT, None, "en")
    assert found["segments"][0]["start_s"] == 0


def test_one_row_that_fails_is_a_row_with_its_error(transcribe: Transcribe) -> None:
    assert transcribe({"path": "gone.wav"})["error_kind"] == "not_found"
    assert transcribe({"bytes": None})["error_kind"] == "not_audio"
    assert transcribe({"array": samples()})["error_kind"] == "not_audio"
    assert transcribe({"audio": [float("nan")]})["error_kind"] == ["not_audio"]


def test_datasets_maps_rows_and_batches_alike(transcribe: Transcribe) -> None:
    clips = datasets.Dataset.from_dict({"path": [CLIP, CLIP, "gone.wav"]})
    one_by_one = clips.map(transcribe)
    assert one_by_one["text"] == [TEXT, TEXT, None]
    # The first batches written have no failure.
    options = {"batched": True, "batch_size": 1, "writer_batch_size": 1}
    assert clips.with_format("numpy").map(transcribe, **options)["error_kind"][2] == "not_found"
    found = clips.map(transcribe, remove_columns=["path"], **options)
    assert found["error_kind"] == [None, None, "not_found"]
    assert found.column_names == BATCH_COLUMNS.names
    assert found.features.arrow_schema.types == BATCH_COLUMNS.types


@pytest.mark.parametrize("kind", [
    lambda batch: batch,
    lambda batch: {name: np.array(values, dtype=object) for name, values in batch.items()},
    pd.DataFrame,
])  # fmt: skip
def test_types_are_those_of_the_schema_with_and_without_failures(
    transcribe: Transcribe, tmp_path: Path, kind: Any
) -> None:
    for number, paths in enumerate(([CLIP], ["gone.wav"])):
        found = transcribe(kind({"path": paths}))
        if isinstance(found, pd.DataFrame):
            found.to_parquet(tmp_path / f"{number}.parquet")
        else:
            pq.write_table(pa.table(found), tmp_path / f"{number}.parquet")
        written = pq.read_schema(tmp_path / f"{number}.parquet")
        assert [written.field(field.name).type for field in BATCH_COLUMNS] == BATCH_COLUMNS.types
    assert pq.read_table(tmp_path)["error_kind"].to_pylist() == [None, "not_found"]


def test_columns_of_a_mapping_keep_their_types_through_a_pickle(transcribe: Transcribe) -> None:
    found = pickle.loads(pickle.dumps(transcribe({"path": ["gone.wav"]})))
    assert found["text"] == [None]
    assert pa.array(found["text"]).type == pa.string()


def test_ray_takes_the_types_of_its_default_format(
    transcribe: Transcribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_is_ray_worker", lambda: True)
    found = transcribe({"path": np.array(["gone.wav"])})
    for field in BATCH_COLUMNS:
        assert convert_to_pyarrow_array(found[field.name], field.name).type == field.type


def test_an_empty_batch_gets_empty_columns(transcribe: Transcribe) -> None:
    assert transcribe({}) == {name: [] for name in BATCH_COLUMNS.names}
    assert transcribe({"id": []})["text"] == []
    empty = transcribe(pa.table({"path": pa.array([], pa.string())}))
    assert (empty.num_rows, empty.schema.field("segments").type) == (0, BATCH_COLUMNS[4].type)
    assert len(transcribe(pd.DataFrame({"path": []})).columns) == 1 + len(BATCH_COLUMNS)


def test_a_wrong_batch_and_wrong_options_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"found columns paths, expected audio; name the column"):
        Transcribe()({"paths": [CLIP]})
    with pytest.raises(ConfigError, match=r"expected wav; did you mean wave\?"):
        Transcribe(audio_column="wav")({"wave": [CLIP]})
    with pytest.raises(ConfigError, match=r"found columns text, error, expected to add these"):
        Transcribe()(pa.table({"path": [CLIP], "text": ["mine"], "error": [""]}))
    with pytest.raises(ConfigError, match=r"beamsize: unknown key; did you mean beam_size\?"):
        Transcribe(beamsize=5)
    with pytest.raises(CheckpointError, match="no-such-folder"):
        Transcribe("./no-such-folder")({"path": [CLIP]})


def test_a_batch_that_waits_does_not_hold_another_up(transcribe: Transcribe) -> None:
    has_ended = threading.Event()

    class Slow(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert has_ended.wait(60)
            return b""

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(transcribe, {"audio": [Slow()]})
        try:
            assert transcribe({"path": [CLIP]})["text"] == [TEXT]
            assert not slow.done()
        finally:
            has_ended.set()
        assert slow.result()["error_kind"] == ["empty_file"]


def test_a_copy_of_a_loaded_one_loads_its_own_model(transcribe: Transcribe) -> None:
    transcribe({"path": [CLIP]})
    copied = pickle.loads(pickle.dumps(transcribe))
    assert copied._transcriber is None
    assert (copied._load.args, copied._load.keywords) == (
        transcribe._load.args, transcribe._load.keywords,
    )  # fmt: skip


@pytest.mark.ray
def test_the_examples_of_the_guide(
    ray_session: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = tmp_path / "talks"
    talks.mkdir()
    shutil.copy(CLIP, talks / "cheetah.wav")
    shutil.copy(SPEECH / "LJ002-0193.wav", talks / "prison.wav")
    (talks / "broken.mp3").write_text("<html>not found</html>")
    monkeypatch.chdir(tmp_path)
    guide = (REPOSITORY / "docs/how-to/batches.md").read_text(encoding="utf-8")
    # The workers of this Ray started in another folder.
    guide = guide.replace('("talks"', f'("{talks}"').replace(
        '"transcripts', f'"{tmp_path}/transcripts'
    )
    examples = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", guide, re.DOTALL)
    assert len(examples) == 3
    names: dict[str, Any] = {}
    for code, shown in examples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "batches.md", "exec"), names)
        assert printed.getvalue() == shown
    assert ray.is_initialized()
