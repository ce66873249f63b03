"""Engines and extractors that fail or kill their worker, for runs on Ray.

What happens to a recording is written in its address, as in `engines` and `extractors`. Each load
of an engine, and each death of an extract worker, is a line of `notes` next to the job's model.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import EngineError
from corpus_asr.runtime.workers import ExtractWorker
from corpus_asr.stages.parts import ExtractRequest, Message
from corpus_asr.stages.transcribe import EngineSpec
from tests.support.engines import ScriptedEngine
from tests.support.extractors import make
from tests.support.killing import SlowEngine

NOTES = "notes"
KILLING_EXTRACTOR = "tests.support.bad_workers:make_killing"
PAUSE_S = 0.05


def notes(folder: Path) -> list[str]:
    """Return the lines of a job whose model lies in this folder."""
    path = folder / NOTES
    return path.read_text().splitlines() if path.exists() else []


def _note(folder: Path, what: str) -> None:
    with (folder / NOTES).open("a") as file:
        file.write(f"{what}\n")


class UsualEngine(ScriptedEngine):
    """Takes its time, so that no worker does everything before the others have begun."""

    def submit(self, request: Any) -> "Future[Any]":
        time.sleep(PAUSE_S)
        return super().submit(request)


class FailingEngine(ScriptedEngine):
    """Fails of everything, as that of a broken GPU."""

    def submit(self, request: Any) -> "Future[Any]":
        time.sleep(PAUSE_S)
        future: Future[Any] = Future()
        future.set_exception(EngineError("an illegal memory access (scripted)"))
        return future


def _engine(spec: EngineSpec, *, bad: bool) -> ScriptedEngine:
    _note(Path(spec.config.model.checkpoint).parent, f"{'bad' if bad else 'good'} load")
    return FailingEngine() if bad else UsualEngine()


def usual_engine(spec: EngineSpec) -> ScriptedEngine:
    """Fail of nothing but what its address says."""
    return _engine(spec, bad=False)


def failing_engine(spec: EngineSpec) -> ScriptedEngine:
    """Fail in every worker."""
    return _engine(spec, bad=True)


def first_failing_engine(spec: EngineSpec) -> ScriptedEngine:
    """Fail in the worker that loads first, whatever becomes of its processes."""
    me = ray.get_runtime_context().get_actor_id()
    first = Path(spec.config.model.checkpoint).parent / "first"
    with contextlib.suppress(FileExistsError), first.open("x") as file:
        file.write(str(me))
    return _engine(spec, bad=first.read_text() == me)


def failing_gpu_engine(spec: EngineSpec) -> ScriptedEngine:
    """Fail on GPU 0, in every pass."""
    return _engine(spec, bad="0" in ray.get_runtime_context().get_accelerator_ids()["GPU"])


def late_engine(_: EngineSpec) -> ScriptedEngine:
    """Take long for each part, two at a time."""
    return SlowEngine(pause_s=9.0)


class DyingBetween(ExtractWorker):
    """Ends once, after a recording whose address tells to."""

    def __init__(self, config: RunConfig, **options: Any) -> None:
        self._folder = Path(config.output.uri).parent
        super().__init__(config, **options)

    def _parts_of(self, packs: pa.Table) -> Iterator[pa.Table]:
        for parts in super()._parts_of(packs):
            yield parts
            [row] = parts.select(["uri", "last_part"]).to_pylist()
            ends = row["last_part"] and row["uri"].startswith("dies")
            # What it yielded last may or may not have left the process: the next one is spared.
            if ends and "extract worker killed" not in notes(self._folder):
                _note(self._folder, "extract worker killed")
                os.kill(os.getpid(), signal.SIGKILL)


def make_killing(folder: str, **options: Any) -> Callable[[ExtractRequest], Iterator[Message]]:
    """Kill the extract worker, not only its decoder, in the second part of `killparent`."""
    scripted = make(**options)

    def extract(request: ExtractRequest) -> Iterator[Message]:
        for part in scripted(request):
            if "killparent" in request.uri and isinstance(part, dict) and part["part"] == 1:
                _note(Path(folder).parent, "extract worker killed")
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
            yield part

    return extract
