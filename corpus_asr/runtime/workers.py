"""The workers of a run on Ray: extraction and transcription of many, and of one recording alone.

In: packs, parts, or a recording. Out: their parts or results. A worker whose process cannot go on
ends it: Ray starts another, and what it had in work is tried again. One that fails its test, or
fails again, is taken out of work.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.activity import Activity
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import EngineError
from corpus_asr.failure_kinds import NOT_A_NUMBER
from corpus_asr.families.registry import part_features, resolve, users_family
from corpus_asr.logs import LogSettings, configure
from corpus_asr.runtime.commit import IDS
from corpus_asr.runtime.coordinator import (
    REPORT_EVERY_S,
    SILENT_S,
    CoordinatorClient,
    Device,
    end_for_good,
)
from corpus_asr.runtime.ray_workers import hand_over, own_error
from corpus_asr.schemas import PARTS, RESULTS
from corpus_asr.stages.extract import ExtractStage, further_features_of
from corpus_asr.stages.parts import OK, further_rows, one_row
from corpus_asr.stages.transcribe import EngineFactory, EngineSpec, TranscribeStage
from corpus_asr.storage.model_files import fetch_checkpoint
from corpus_asr.storage.stores.uri import without_secrets
from corpus_asr.units import SAMPLE_RATE_HZ

# Five minutes of reports.
STUCK_LOOKS = round(SILENT_S / REPORT_EVERY_S)
# An engine that does not load, or fails its test: a process that ends may still have the memory.
LOADS = 3
LOAD_PAUSE_S = 5.0
# Stages of a run, as the coordinator stops their workers; the last one is the second try.
EXTRACT, TRANSCRIBE, ALONE = "extract", "transcribe", "alone"


class _Worker:
    """Base of all workers: reports to the coordinator, and activity."""

    _stage_name: str

    def __init__(self, *, coordinator: Any, logs: LogSettings) -> None:
        configure(logs, redact=without_secrets)
        self._coordinator = CoordinatorClient(
            coordinator, self._stage_name, self.activity, after=self._look_after
        )
        self._device = self._coordinator.worker.device
        self._coordinator.start()

    def activity(self) -> Activity:
        """Return the activity of this process so far."""
        return Activity()

    def _look_after(self) -> None:
        """Act upon what happens meanwhile; called after each report."""

    @contextmanager
    def _ending_the_run(self) -> Iterator[None]:
        """Tell the driver of an error that every recording would meet."""
        try:
            yield
        except EngineError:
            raise  # of this worker
        except Exception as error:
            self._coordinator.fail(own_error(error))
            raise


class ExtractWorker(_Worker):
    """The extract stage of one actor, which begins nothing new once the run is to stop."""

    _stage_name = EXTRACT

    def __init__(
        self, config: RunConfig, *, coordinator: Any, logs: LogSettings, extractor: str
    ) -> None:
        self._stage: ExtractStage | None = None
        self._files_extracted = 0
        super().__init__(coordinator=coordinator, logs=logs)
        with self._ending_the_run():
            self._stage = ExtractStage(config, extractor=extractor)

    def activity(self) -> Activity:
        """Return the activity of this process so far."""
        activity = Activity() if self._stage is None else self._stage.activity
        return replace(activity, files_extracted=self._files_extracted)

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        """Yield PARTS tables; not all of a run that stops."""
        try:
            if not self._coordinator.is_stopping:
                with self._ending_the_run():
                    yield from self._parts_of(packs)
        except EngineError as error:
            # It tried a few times to start a child: nobody here extracts anything.
            self._coordinator.take_out(str(error))
            end_for_good()
        finally:
            self._files_extracted += pc.list_value_length(packs["files"]).to_pylist()[0]
            self._coordinator.send()

    def _parts_of(self, packs: pa.Table) -> Iterator[pa.Table]:
        assert self._stage is not None, "made by the constructor"
        for parts in self._stage(packs):
            yield parts
            if self._coordinator.is_stopping:
                return


class StuckWatch:
    """Notices that an engine computes nothing, whatever it has to do: a kernel that never ends."""

    def __init__(self) -> None:
        self._before: tuple[float, ...] = ()
        self._looks = 0

    def is_stuck(self, activity: Activity, *, proving: bool = False) -> bool:
        """Return whether nothing changed in `STUCK_LOOKS` checks, one report apart.

        Counts checks rather than time: a machine that was suspended makes one check.
        """
        did: tuple[float, ...] = (
            activity.load_s, activity.encoder_batches, activity.windows, activity.steps,
            activity.tokens, activity.parts_transcribed,
        )  # fmt: skip
        busy = activity.parts_in_engines > 0 or proving
        self._looks = self._looks + 1 if busy and did == self._before else 0
        self._before = did
        return self._looks >= STUCK_LOOKS


def silent_part(config: RunConfig) -> pa.Table:
    """Return a PARTS row of a second of silence, with all features that a job's engine takes."""
    model, samples = config.needed_model, np.zeros(SAMPLE_RATE_HZ, np.float32)
    if model.recognizer is not None:
        features = resolve(users_family(model.recognizer).part_features).from_folder(Path())
    else:
        folder = fetch_checkpoint(model.checkpoint, revision=model.revision, weights=False)
        features = part_features(folder)
    silence = features(samples)
    further = {
        kind: part_features(folder)(samples)
        for kind, folder in further_features_of(model, config.align.model).items()
    }
    row = {"recording_id": "silence", "uri": "silence", "part": 0, "last_part": True, "status": OK,
           "part_start_s": 0.0, "part_end_s": 1.0, "num_samples": SAMPLE_RATE_HZ,
           "num_mel_bins": features.num_mel_bins, "pad_value": float(silence.pad_value),
           "features": silence.values, "further": further_rows(further)}  # fmt: skip
    return one_row(PARTS, row)


class _EngineWorker(_Worker):
    """A worker with an engine, which it tests before anything is given to it."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        coordinator: Any,
        logs: LogSettings,
        engine_factory: EngineFactory,
    ) -> None:
        self._spec, self._engine_factory = spec, engine_factory
        self._stage: TranscribeStage | None = None
        self._spent = Activity()  # by engines that failed
        self._testing = threading.Lock()
        self._watch = StuckWatch()
        super().__init__(coordinator=coordinator, logs=logs)

    def activity(self) -> Activity:
        """Return what this process did so far."""
        return self._spent if self._stage is None else self._spent + self._stage.activity

    def _look_after(self) -> None:
        activity = self.activity()
        if self._device.gpus and self._watch.is_stuck(activity, proving=self._testing.locked()):
            self._leave(
                EngineError(
                    f"transcribing: no window, step or token in {STUCK_LOOKS} reports, with "
                    f"{activity.parts_in_engines} parts in the engine, expected progress in "
                    "seconds; check dmesg (Xid) for a stuck kernel"
                )
            )

    def _leave(self, error: EngineError) -> None:
        """End this process, so that another takes its place."""
        self._coordinator.leave(str(error))

    def _load(self, *, test: bool) -> None:
        """Load the engine, and have it transcribe silence, so that no part is blamed for it.

        Raises:
            EngineError: it failed a few times.
        """
        for load in range(1, LOADS + 1):
            self._stage = TranscribeStage(self._spec, engine_factory=self._engine_factory)
            try:
                self._stage.wait_until_loaded()
                if test:
                    self._test()
                return
            except EngineError:
                stage, self._stage = self._stage, None
                self._spent += stage.activity
                stage.close()
                if load == LOADS:
                    raise
                time.sleep(LOAD_PAUSE_S)

    def _test(self) -> None:
        assert self._stage is not None, "loaded before"
        with self._testing:
            self._stage.transcribe_silence(silent_part(self._spec.config))

    def _transcribed(self, parts: pa.Table) -> pa.Table:
        assert self._stage is not None, "loaded before"
        results = self._stage(parts)
        if NOT_A_NUMBER in results["error_kind"].to_pylist():
            self._test()
        return results


class TranscribeWorker(_EngineWorker):
    """The transcribe stage of one actor; called from several threads.

    Its results go to a commit actor: what a task returns to Ray Data leaves it only with the last
    row of its block, which may take hours.
    """

    _stage_name = TRANSCRIBE

    def __init__(self, spec: EngineSpec, *, commit_actors: Sequence[Any], **options: Any) -> None:
        self._commit_actor = random.choice(commit_actors)
        super().__init__(spec, **options)
        was_restarted = self._coordinator.worker.was_restarted
        try:
            with self._ending_the_run():
                self._load(test=bool(self._device.gpus) or was_restarted)
        except EngineError as error:
            # Ray gives no calls to a worker that is starting, and starts none in its place.
            while not self._coordinator.is_stopping:
                self._coordinator.take_out(str(error))
                if was_restarted:  # for what it was given it is not waited any longer
                    end_for_good()
                time.sleep(REPORT_EVERY_S)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Have one RESULTS row per part committed, none of a run that stops.

        Waits while the commit actor does. Returns their IDS, for the driver to miss what is lost.
        """
        results = RESULTS.empty_table()
        try:
            if not self._coordinator.is_stopping:
                with self._ending_the_run():
                    results = self._transcribed(parts)
                hand_over(results, self._commit_actor)
        except EngineError as error:
            self._leave(error)
            raise
        finally:
            self._coordinator.send()
        return results.select(IDS)


class RecordingWorker(_EngineWorker):
    """Both stages in one actor, for one recording at a time, a part after the other."""

    _stage_name = ALONE

    def __init__(self, spec: EngineSpec, *, extractor: str, **options: Any) -> None:
        self._extract_stage = ExtractStage(spec.config, extractor=extractor)
        super().__init__(spec, **options)

    def activity(self) -> Activity:
        """Return what this process did so far."""
        return super().activity() + self._extract_stage.activity

    def device(self) -> Device:
        """Return what it runs on."""
        return self._device

    def prepare(self) -> None:
        """Load and test the engine.

        Raises:
            EngineError: it cannot work.
        """
        try:
            self._load(test=True)
        except EngineError as error:
            raise EngineError(f"{self._device}: {error}") from error

    def transcribe(self, pack: pa.Table, attempt: int) -> Iterator[pa.Table]:
        """Yield the RESULTS rows of each part of a recording; not all of a run that stops."""
        at = RESULTS.get_field_index("attempts")
        for parts in self._extract_stage(pack):
            results = self._transcribed(parts)
            attempts = pa.array([attempt] * results.num_rows, pa.int32())
            yield results.set_column(at, RESULTS.field(at), attempts)
            if self._coordinator.is_stopping:
                return
