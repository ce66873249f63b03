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

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray

from corpus_asr import Transcribe
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.failure_kinds import FAILURE_KINDS
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
    assert {type(column) for column in silent.values()} == {np.ndarray}
    assert {len(column) for column in silent.values()} == {2}
    assert [*silent["text"]] == ["", ""]
    nested = pa.table({"array": [[SILENCE[:800]] * 2], "sampling_rate": [16_000]})
    assert transcribe(nested)["duration_s"].to_pylist() == [pytest.approx(0.05)]


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
