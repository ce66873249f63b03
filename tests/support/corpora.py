"""A small corpus and a tiny random model, and what a run left of them."""

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.config.run import RunConfig
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.run_state.finish import merge
from corpus_asr.storage.run_state.table_names import TABLES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.checkpoints import tiny_whisper
from tests.support.tables import rows_of, run_config, stored_segments, with_section
from tests.support.tokenizers import tiny_tokenizer

CLIPS = Path(__file__).resolve().parents[1] / "data" / "clips"


def demo_corpus(folder: Path) -> Path:
    """Copy the demo clips and put a file among them that is no audio."""
    shutil.copytree(CLIPS, folder)
    (folder / "broken.mp3").write_text("<html>404 not found</html>")
    return folder


def tiny_model(folder: Path, *, max_target_positions: int = 32, **sizes: Any) -> Path:
    """Write a model that transcribes into noise, the same noise every time, and briefly."""
    # Noise finds no end: what a window may say is what it costs.
    files = _files_of_model(max_target_positions=max_target_positions, **sizes)
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (model / name).write_bytes(data)
    return model


@functools.cache
def _files_of_model(**sizes: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        tokenizer, model = Path(name) / "tokenizer", Path(name) / "model"
        tiny_tokenizer(tokenizer)
        tiny_whisper(model, tokenizer=tokenizer, **sizes)
        return {path.name: path.read_bytes() for path in model.iterdir()}


def job(corpus: Path, model: Path, output: Path, /, **sections: Any) -> RunConfig:
    """Return a job in parts of 30 s that decodes each window once."""
    usual: dict[str, Any] = {
        "extract": {"part_s": 30},
        "decoding": {"temperature": 0.0, "logprob_threshold": None, "no_speech_threshold": None},
        "transcribe": {"slots": 2},
    }
    failures = {"uri": str(output), "max_failed_fraction": 1.0}
    return run_config(corpus, output, model=model, **usual | {"output": failures} | sections)


def copy_of(config: RunConfig, folder: Path) -> RunConfig:
    """Return the same job over a copy of its output."""
    shutil.copytree(config.output.uri, folder)
    return with_section(config, "output", uri=str(folder))


def outcomes_in(output: Path | OutputStore) -> dict[tuple[str, int], dict[str, Any]]:
    rows = rows_of(_store(output).outcomes())
    outcomes = {(Path(row["uri"]).name, row["part"]): row for row in rows}
    assert len(outcomes) == len(rows), "a part has two outcomes"
    return outcomes


def segments_in(output: Path | OutputStore) -> list[tuple[Any, ...]]:
    """Return what was said, in order, without what differs between runs."""
    columns = ("part", "segment", "start_s", "end_s", "text", "language")
    rows = rows_of(stored_segments(_store(output)))
    return sorted((Path(row["uri"]).name, *(row[name] for name in columns)) for row in rows)


def _store(output: Path | OutputStore) -> OutputStore:
    return output if isinstance(output, OutputStore) else OutputStore(str(output))


def redo(config: RunConfig, name: str, part: int | None = None) -> None:
    """Forget that a file of a finished job was done, or one part of it."""
    store = OutputStore(config.output.uri)
    for table in store.commit_names():
        rows = store.read_table(table, OUTCOMES).to_pylist()
        done = [not (row["uri"].endswith(name) and part in (None, row["part"])) for row in rows]
        store.replace([table], merge(store, [table], {table: np.array(done)}))
    # Else its row in recordings stands for its parts.
    store.write_json(TABLES_NAME, store.read_json(TABLES_NAME) | {"settled": False})
