"""A scripted engine and jobs for it: no audio, no model, real tables; loads no torch.

What happens to a part is written in its recording's URI: `item-error`, `engine-error`, `bug` and
`kill` do what they say; everything else is transcribed as one segment that names the part and what
it was given. With `words` in the URI it comes word by word.
"""

import dataclasses
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpus_asr.activity import Activity, Tally
from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import EngineError, ItemError
from corpus_asr.pipelines import driver
from corpus_asr.runtime import checkpoints
from corpus_asr.runtime.commit import Committer
from corpus_asr.runtime.local import run_local
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.segments import Segment
from corpus_asr.stages.transcribe import EngineFactory, EngineSpec
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.tables import rows_of, run_config, segment


@dataclass(frozen=True)
class ScriptedTranscript:
    """Has the fields of a `PartTranscript`."""

    segments: tuple[Segment, ...]
    language: str | None = "en"
    language_probability: float | None = 0.75
    transcribe_s: float = 0.5
    speech_without_text_s: float | None = None
    labels: None = None
    placed: None = None
    other_language: bool = False


class ScriptedEngine:
    """Meets `TranscribingEngine`; `release` lets a test hold answers back."""

    device_name = "scripted"

    def __init__(self, *, held: bool = False, spec: EngineSpec | None = None) -> None:
        self.requests: list[Any] = []
        self.spec = spec
        self.closed = False
        self.submitted = threading.Condition()
        self._held: list[tuple[Any, Future[Any]]] | None = [] if held else None

    def submit(self, request: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        with self.submitted:
            self.requests.append(request)
            self.submitted.notify_all()
            if self._held is not None:
                self._held.append((request, future))
                return future
        _answer(request, future)
        return future

    def release(self) -> None:
        """Answer what was held back, last first, and hold nothing from now on."""
        with self.submitted:
            held, self._held = self._held or [], None
        for request, future in reversed(held):
            _answer(request, future)

    def statistics(self) -> Activity:
        return Activity(slots=1, windows=len(self.requests))

    def close(self) -> None:
        self.closed = True


def _answer(request: Any, future: "Future[Any]") -> None:
    where = request.recording_id
    if "item-error" in where:
        future.set_exception(ItemError(f"transcribing {where}: scripted", kind="scripted"))
    elif "engine-error" in where:
        future.set_exception(EngineError("the device is lost (scripted)"))
    elif "bug" in where:
        future.set_exception(RuntimeError("scripted bug"))
    elif "kill" in where:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        future.set_result(ScriptedTranscript(segments=(_segment(request),)))


def _segment(request: Any) -> Segment:
    start_s, text = request.start_s, f" part {request.part} of {len(request.features)} frames"
    values: dict[str, Any] = {
        "tokens": (1, 2, 3), "language_probability": 0.75, "confidence": 0.5, "avg_logprob": -0.5,
        "no_speech_prob": 0.0, "compression_ratio": 1.0,
        "speech_fraction": None if request.speech is None else 1.0,
    }  # fmt: skip
    end_s = start_s + request.num_samples / SAMPLE_RATE_HZ
    return segment(text, start_s, end_s, words="words" in request.recording_id, **values)


def scripted_engine(spec: EngineSpec) -> ScriptedEngine:
    """Meet `EngineFactory`; pickled by reference into Ray's actors."""
    return ScriptedEngine(spec=spec)


def broken_engine(spec: EngineSpec) -> ScriptedEngine:
    """Fail as an engine does whose device is gone."""
    raise EngineError(f"loading {spec.config.model.checkpoint}: no device (scripted)")


def always(engine: ScriptedEngine) -> EngineFactory:
    """Return an `EngineFactory` that gives this engine, for stages in the test's own process."""
    return lambda spec: engine


EXTRACTOR = "tests.support.extractors:make"


def scripted_job(folder: Path, **sections: Any) -> RunConfig:
    """Return a job whose checkpoint is a name and no more."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text('{"model_type": "whisper"}')
    return run_config("/nowhere", folder / "output", model=model, **sections)


def script(
    put: Callable[[Any, str, Any], None], *, engine: Any, extractor: str = EXTRACTOR
) -> None:
    """Have the pipeline use this engine and, run locally, this extractor."""
    replaced = {
        (driver, "run_local"): functools.partial(run_local, extractor=extractor),
        (driver, "load_engine"): engine,
        (checkpoints, "check_transcribes"): lambda *_: None,  # there is no tokenizer
    }
    for (module, name), value in replaced.items():
        assert hasattr(module, name), f"{module.__name__} has no {name}: nothing would be scripted"
        put(module, name, value)


def committer_of(config: RunConfig) -> Committer:
    """Return a committer into the job's output."""
    return Committer(
        store=OutputStore(config.output.uri),
        run_id="run",
        model=config.model.checkpoint,
        model_revision="revision",
    )


def outcomes_by_part(
    config: RunConfig, *, may_repeat: bool = False
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the outcomes rows by recording and part, each once unless they `may_repeat`.

    What a worker committed before it ended is done again with the rest of its task.
    """
    rows = rows_of(OutputStore(config.output.uri).outcomes())
    found = {(row["recording_id"], row["part"]): row for row in rows}
    assert may_repeat or len(found) == len(rows), "a part was committed twice"
    return found


def run_scripted(
    config: RunConfig,
    packs: Iterable[pa.Table],
    *,
    engine: EngineFactory = scripted_engine,
    workers: int = 1,
    extractor: str = EXTRACTOR,
    committer: Committer | None = None,
    files: int = 1,
    stop_at: float | None = None,
) -> Tally:
    """Work off packs in this process, and return what was committed."""
    resources = resolve_resources(config, (this_machine(),), num_packs=8)
    progress = Progress(total_files=files, stream=None)
    run_local(
        config,
        packs,
        committer or committer_of(config),
        resources=dataclasses.replace(resources, extract_workers=workers),
        progress=progress,
        engine_factory=engine,
        extractor=extractor,
        options=RunOptions(stop_at=stop_at),
    )
    return progress.tally
