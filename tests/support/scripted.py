"""A job for the scripted extractor and engine: no audio, no model, real tables."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines import driver, transcribe
from corpus_asr.runtime.commit import Committer
from corpus_asr.runtime.local import run_local
from corpus_asr.storage.run_state.tables import OutputStore

EXTRACTOR = "tests.support.extractors:make"


def scripted_job(folder: Path, **sections: Any) -> RunConfig:
    """Return a job whose checkpoint is a name and no more."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text('{"model_type": "whisper"}')
    usual = {
        "source": {"uri": "/nowhere"},
        "model": {"checkpoint": str(model)},
        "output": {"uri": str(folder / "output")},
    }
    return RunConfig.model_validate(usual | sections)


def script(
    put: Callable[[Any, str, Any], None], *, engine: Any, extractor: str = EXTRACTOR
) -> None:
    """Have the pipeline transcribe with this engine and, run locally, extract with this extractor.

    Args:
        put: such as a monkeypatch's `setattr`.
        engine: an `EngineFactory`.
        extractor: as `module:callable`.
    """
    replaced = {
        (driver, "run_local"): functools.partial(run_local, extractor=extractor),
        (driver, "load_engine"): engine,
        (transcribe, "check_transcribes"): lambda *_: None,  # there is no tokenizer
    }
    for (module, name), value in replaced.items():
        assert hasattr(module, name), f"{module.__name__} has no {name}: nothing would be scripted"
        put(module, name, value)


def committer_of(config: RunConfig) -> Committer:
    """Return a committer into the job's output."""
    return Committer(
        uri=config.output.uri,
        endpoint_url=None,
        run_id="run",
        model=config.model.checkpoint,
        model_revision="revision",
    )


def outcomes_by_part(config: RunConfig) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the outcomes rows by recording and part; every part once."""
    batches = OutputStore(config.output.uri).outcomes()
    rows = [row for batch in batches for row in batch.to_pylist()]
    found = {(row["recording_id"], row["part"]): row for row in rows}
    assert len(found) == len(rows), "a part was committed twice"
    return found
