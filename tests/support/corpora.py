"""A small corpus and a tiny random model, and what a run left of them."""

import shutil
from pathlib import Path
from typing import Any

from corpus_asr.config.run import RunConfig
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

CLIPS = Path(__file__).resolve().parents[1] / "data" / "clips"


def demo_corpus(folder: Path) -> Path:
    """Copy the demo clips and put a file among them that is no audio."""
    shutil.copytree(CLIPS, folder)
    (folder / "broken.mp3").write_text("<html>404 not found</html>")
    return folder


def tiny_model(folder: Path) -> Path:
    """Write a model that transcribes into noise, the same noise every time."""
    tiny_tokenizer(folder / "tokenizer")
    return tiny_whisper(folder / "model", tokenizer=folder / "tokenizer")


def job(corpus: Path, model: Path, output: Path, **sections: Any) -> RunConfig:
    """Return a job in parts of 30 s that decodes each window once."""
    usual = {
        "source": {"uri": str(corpus)},
        "extract": {"part_s": 30},
        "model": {"checkpoint": str(model)},
        "decoding": {"temperature": 0.0, "logprob_threshold": None, "no_speech_threshold": None},
        "transcribe": {"slots": 2},
        "output": {"uri": str(output), "max_failed_fraction": 1.0},
    }
    return RunConfig.model_validate(usual | sections)


def outcomes_in(output: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the outcomes rows by file name and part."""
    rows = [row for batch in OutputStore(str(output)).outcomes() for row in batch.to_pylist()]
    found = {(Path(row["uri"]).name, row["part"]): row for row in rows}
    assert len(found) == len(rows), "a part has two outcomes"
    return found


def segments_in(output: Path) -> list[tuple[Any, ...]]:
    """Return what was said, in order, without what differs between runs."""
    rows = [row for batch in OutputStore(str(output)).segments() for row in batch.to_pylist()]
    said = [
        (Path(row["uri"]).name, row["part"], row["segment"], row["start_s"], row["end_s"],
         row["text"], row["language"])
        for row in rows
    ]  # fmt: skip
    return sorted(said)
