"""The workers of a run on Ray: a stage each, which survives what becomes of its processes.

In: packs or parts of one pass. Out: their parts or results; none of a call in which an earlier
process of this worker ended, since the driver decides who tries that again. A worker whose
processes fail without a part to blame is taken out of work: it takes no calls as long as others
work.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.activity import Activity
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import EngineError, ItemError
from corpus_asr.failure_kinds import NOT_A_NUMBER
from corpus_asr.logs import LogSettings, configure
from corpus_asr.runtime.coordinator import (
    REPORT_EVERY_S,
    SILENT_S,
    CoordinatorClient,
    WorkerState,
    this_device,
    this_worker,
)
from corpus_asr.runtime.passes import (
    DIED,
    EXTRACT,
    HANDED_BACK,
    KILLED,
    TRANSCRIBE,
    PartKey,
    Pass,
    Trail,
    in_call,
    note_deaths,
)
from corpus_asr.schemas import FILES, RESULTS
from corpus_asr.stages.extract import ExtractStage
from corpus_asr.stages.parts import NOTHING_SAID, OK, failure_fields
from corpus_asr.stages.transcribe import EngineFactory, EngineSpec, TranscribeStage, refuse
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import without_secrets

# Five minutes of reports.
STUCK_LOOKS = round(SILENT_S / REPORT_EVERY_S)


class _Worker:
    """What both kinds know of themselves, the pass and the run."""

    def __init__(
        self, stage: str, config: RunConfig, *, coordinator: Any, logs: LogSettings, of: Pass
    ) -> None:
        configure(logs, redact=without_secrets)
        self._pass = of
        self._device = this_device()
        self._worker, self._restarted = this_worker()
        self._trail = Trail(of, self._device, self._worker)
        self._output = OutputStore.of(config.output)
        self._kind = stage
        self.out = self._trail.failures()[1] if self._trail.is_out else None
        self._coordinator = CoordinatorClient(
            coordinator, self.activity, self._state, after=self._look_after
        )
        self._coordinator.start()
        if self.out is not None or of.avoids(stage, self._device):
            # Ray gives no calls to a worker that is starting.
            self._coordinator.stand_by()

    def activity(self) -> Activity:
        """Return what this process did so far."""
        return Activity()

    def _state(self) -> WorkerState:
        token = self._pass.token
        return WorkerState(token, self._kind, self._worker, self._device, self.out)

    def _look_after(self) -> None:
        """Act upon what happens meanwhile; called after each report."""

    def _leave(self, error: EngineError) -> None:
        self._trail.fail(str(error))
        self._coordinator.leave(f"{self._device}: {error}")

    def _not_done(self, rows: pa.Table) -> None:
        note_deaths(self._output, self._pass, rows, self._device)

    def _error(self, kind: str, why: str) -> ItemError:
        return ItemError(f"{self._device}: {why}", kind=kind, retryable=True)


class ExtractWorker(_Worker):
    """The extract stage of one actor, which begins nothing new once the run is to stop."""

    def __init__(
        self,
        config: RunConfig,
        *,
        coordinator: Any,
        logs: LogSettings,
        extractor: str,
        of: Pass,
    ) -> None:
        self._stage: ExtractStage | None = None
        self._files_extracted = 0
        super().__init__(EXTRACT, config, coordinator=coordinator, logs=logs, of=of)
        self._failed_before = self._trail.failures()[0] > 0
        if self._failed_before and self.out is None:
            self._trail.start()
        self._stage = ExtractStage(config, extractor=extractor)

    def activity(self) -> Activity:
        """Return what this process did so far."""
        activity = Activity() if self._stage is None else self._stage.activity
        return replace(activity, files_extracted=self._files_extracted)

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        """Yield PARTS tables; not all of a run that stops, none of what ended a process."""
        files = pc.list_flatten(packs["files"]).to_pylist()
        try:
            yield from self._extracted(packs, files)
        finally:
            self._files_extracted += len(files)
            self._coordinator.send()

    def _extracted(self, packs: pa.Table, files: list[dict[str, Any]]) -> Iterator[pa.Table]:
        if self._coordinator.stopping():
            return
        call = f"packs {packs['pack_id'].to_pylist()}"
        if self.out is not None:
            self._not_done(self._rows(files, HANDED_BACK, self.out))
            return
        if (before := self._trail.before(call)) is not None:
            # What it yielded may be on its way already: yielding other things would mix them up.
            ended = [file for file in files if file["recording_id"] == before.doing]
            # An error of this stage is no recording's, nor is what came between two of them.
            kind = HANDED_BACK if before.why or not ended else DIED
            if not before.noted:
                self._not_done(self._rows(ended or files, kind, before.why or KILLED))
                self._trail.note(call, before)
            return
        with in_call(self._trail, call):
            yield from self._parts_of(packs, call)

    def _parts_of(self, packs: pa.Table, call: str) -> Iterator[pa.Table]:
        assert self._stage is not None, "made by the constructor"
        try:
            for parts in self._stage(packs, opening=lambda each: self._trail.begin(call, each)):
                if self._failed_before:
                    self._trail.works()
                    self._failed_before = False
                yield parts
                if self._coordinator.stopping():
                    return
        except EngineError as error:
            self._leave(error)

    def _rows(self, files: list[dict[str, Any]], kind: str, why: str) -> pa.Table:
        usual = NOTHING_SAID | {"part": 0, "last_part": True}
        failure = failure_fields(self._error(kind, why), stage="extract") | usual
        rows = [{name: file[name] for name in FILES.names} | failure for file in files]
        return pa.Table.from_pylist(rows, schema=RESULTS)


class StuckWatch:
    """Notices that an engine computes nothing, whatever it has to do: a kernel that never ends."""

    def __init__(self) -> None:
        self._before: tuple[float, ...] = ()
        self._looks = 0

    def is_stuck(self, activity: Activity, *, proving: bool = False) -> bool:
        """Return whether nothing has changed in so many looks, a report's time from each other.

        Looks and no clock: a machine that was paused looks once.
        """
        did: tuple[float, ...] = (
            activity.load_s, activity.encoder_batches, activity.windows, activity.steps,
            activity.tokens, activity.parts_transcribed,
        )  # fmt: skip
        busy = activity.parts_in_engines > 0 or proving
        self._looks = self._looks + 1 if busy and did == self._before else 0
        self._before = did
        return self._looks >= STUCK_LOOKS


class TranscribeWorker(_Worker):
    """The transcribe stage of one actor; called from several threads."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        coordinator: Any,
        logs: LogSettings,
        engine_factory: EngineFactory,
        of: Pass,
    ) -> None:
        self._stage: TranscribeStage | None = None
        self._proving = threading.Lock()
        self._watch = StuckWatch()
        super().__init__(TRANSCRIBE, spec.config, coordinator=coordinator, logs=logs, of=of)
        self._works = False
        if self.out is None:
            self._trail.start()
            self._stage = TranscribeStage(spec, engine_factory=engine_factory)

    def activity(self) -> Activity:
        """Return what this process did so far."""
        return Activity() if self._stage is None else self._stage.activity

    def _look_after(self) -> None:
        activity = self.activity()
        if self._device.gpus and self._watch.is_stuck(activity, proving=self._proving.locked()):
            self._leave(
                EngineError(
                    f"transcribing: no window, step or token in {STUCK_LOOKS} reports, with "
                    f"{activity.parts_in_engines} parts in the engine, expected some in seconds: a "
                    "kernel that does not end; look into the driver's messages (dmesg, Xid)"
                )
            )

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Return one RESULTS row per part, or none where they are left to others."""
        if self._coordinator.stopping():
            return RESULTS.empty_table()
        try:
            return self._transcribed(parts)
        finally:
            self._coordinator.send()

    def _transcribed(self, parts: pa.Table) -> pa.Table:
        keys = _keys(parts)
        call = f"parts {keys}"
        if self._stage is None:
            return self._hand_back(parts, HANDED_BACK, self.out or KILLED)
        if not keys:
            return self._stage(parts)
        if (before := self._trail.before(call)) is not None:
            if not before.noted:
                self._hand_back(parts, DIED, before.why or KILLED)
                self._trail.note(call, before)
            return RESULTS.empty_table()
        with in_call(self._trail, call):
            try:
                self._prove(self._stage, parts)
                self._trail.begin(call)
                results = self._stage(parts)
                if NOT_A_NUMBER in results["error_kind"].to_pylist():
                    with self._proving:
                        self._stage.transcribe_silence(_to_do(parts))
                return self._with_attempts(results)
            except EngineError as error:
                self._leave(error)
                raise

    def _prove(self, stage: TranscribeStage, parts: pa.Table) -> None:
        """Find out whether this process works, so that no part is blamed for what it does."""
        with self._proving:
            if self._works:
                return
            stage.wait_until_loaded()
            if self._device.gpus or self._restarted or self._pass.number > 1:
                stage.transcribe_silence(_to_do(parts))
            self._trail.works()
            self._works = True

    def _hand_back(self, parts: pa.Table, kind: str, why: str) -> pa.Table:
        """Leave parts to the passes to come: what is not committed is not done."""
        left = _to_do(parts) if kind == DIED else parts
        self._not_done(refuse(left, self._error(kind, why), attempts=1))
        return RESULTS.empty_table()

    def _with_attempts(self, results: pa.Table) -> pa.Table:
        if not self._pass.tried:
            return results
        index = results.schema.get_field_index("attempts")
        ids, parts = results["recording_id"].to_pylist(), results["part"].to_pylist()
        attempts = [self._pass.attempts_of(key) for key in zip(ids, parts, strict=True)]
        return results.set_column(
            index, results.schema.field(index), pa.array(attempts, pa.int32())
        )


def _to_do(parts: pa.Table) -> pa.Table:
    return parts.filter(pc.equal(parts["status"], OK))


def _keys(parts: pa.Table) -> list[PartKey]:
    columns = parts.select(["recording_id", "part", "status"]).to_pylist()
    return [(row["recording_id"], row["part"]) for row in columns if row["status"] == OK]
