"""A run over a corpus from its configuration to its finished tables, whatever the engine."""

import datetime
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

from corpus_asr.activity import Activity, Strata, Tally
from corpus_asr.confidence import DEFAULT_MODEL, ConfidenceModel
from corpus_asr.config.run import CLASSIFY_AUDIO, DEFAULT_OPTIONS, RunConfig, RunOptions
from corpus_asr.errors import EngineError
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.logs import name_run
from corpus_asr.runtime.checkpoints import (
    Checkpoint,
    fetch_checkpoints,
    model_name,
)
from corpus_asr.runtime.commit import Committer
from corpus_asr.runtime.estimate import surveying
from corpus_asr.runtime.local import run_local
from corpus_asr.runtime.progress import ENOUGH_ALIKE, Progress, ProgressWriter
from corpus_asr.runtime.resources import (
    Resources,
    local_machine,
    ray_address,
    resolve_resources,
    store_bytes_for,
    this_machine,
)
from corpus_asr.runtime.terminal import line_writer
from corpus_asr.stages.inspection import IsolatedInspection
from corpus_asr.stages.measures import check_measures
from corpus_asr.stages.transcribe import load_engine
from corpus_asr.storage.listing import check_output_apart
from corpus_asr.storage.run_state.finish import OutcomeCounts, finish
from corpus_asr.storage.run_state.forgotten import Forgotten
from corpus_asr.storage.run_state.lock import Lock, read_change
from corpus_asr.storage.run_state.plan import Plan, make_plan, read_listing, read_packs
from corpus_asr.storage.run_state.recording_rows import LostPortion
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.run_files import (
    RunRecord,
    Speed,
    begin_run,
    calibration_for,
    fingerprint,
    new_run_id,
    speed_of,
)
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.source_listings import note_listing
from corpus_asr.storage.run_state.table_names import DUPLICATES_FOLDER, RUN_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted, shortened

if TYPE_CHECKING:  # what only some jobs ask for is imported where they do
    from corpus_asr.runtime.hooks import HookCounts

# Of a portion of recordings whose machine goes.
_RETRIES = 3

# One recording that fails is one that failed.
FEWEST_ALIKE = 2

AfterFinish = Callable[[OutputStore, int], object]
"""Callback with the output folder and its number of recordings, called while the lock is held."""

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary(OutcomeCounts):
    """One run over the output folder's recordings, earlier runs of the same folder included."""

    output_uri: str
    run_id: str
    planned: int
    """Recordings that this run had left to do."""
    speed: Speed
    moved: int = 0
    """Recordings whose results followed them to another address."""
    erased: int = 0
    """Erased recordings that are in the source again, and skipped."""
    made: Literal["segments", "labels"] = "segments"
    hooks: Mapping[str, "HookCounts"] = field(default_factory=dict)
    """Counts of recordings passed to hooks, by name of the hook."""

    @property
    def done(self) -> int:
        """Number of listed recordings with segments or without speech."""
        return self.ok + self.no_speech

    @property
    def failed_fraction(self) -> float:
        """Fraction of failures among recordings processed by this run; 0 if there are none."""
        return self.processed_failed / self.processed if self.processed else 0.0


def check_places(config: RunConfig) -> None:
    """Check that a job's output does not hide its source, before anything is written.

    Raises:
        ConfigError: the output folder contains the source.
    """
    check_output_apart(config.source, config.output.uri)


def _check_hooks(config: RunConfig) -> None:
    if config.hooks:
        from corpus_asr.runtime.hooks import check_hooks

        check_hooks(config)


# Whether optional parts can do what a job asks: each refuses by ConfigError or CheckpointError.
_CHECKS: tuple[Callable[[RunConfig], None], ...] = (check_places, _check_hooks, check_measures)


def prepare(config: RunConfig) -> Checkpoint:
    """Fetch a job's checkpoints, and check what they and the machine support.

    Raises:
        ConfigError: the configuration is unsupported.
        CheckpointError: a model cannot be fetched or loaded.
    """
    for check in _CHECKS:  # before gigabytes of weights are fetched
        check(config)
    return fetch_checkpoints(config)


def run(
    config: RunConfig,
    *,
    local: bool = False,
    progress: TextIO | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
    after_finish: AfterFinish | None = None,
) -> RunSummary:
    """Process the remaining recordings of a job, and finish its output folder.

    `after_finish` is called with the folder and the number of recordings in its tables after these
    are finished, even if the run then raises an error because recordings remain.

    Raises:
        ConfigError: the configuration is unsupported, or another run holds the output folder;
            nothing was done.
        CheckpointError: a model cannot be fetched or loaded.
        EngineError: the run was aborted; committed results are kept.
        FetchError: the output store or the listing failed.
    """
    checkpoint = prepare(config)
    with CorpusRun.open(
        config, checkpoint, local=local, progress=progress, options=options
    ) as corpus_run:
        corpus_run.after_finish = after_finish
        corpus_run.start()
        corpus_run.process()
        return corpus_run.finish()


@dataclass(slots=True, kw_only=True)
class CorpusRun:
    """A run over a corpus in three steps: `start`, `process`, `finish`.

    Each may be repeated by a later run: committed work is not repeated, and a run with nothing
    left to do starts neither Ray nor a model.
    """

    config: RunConfig
    checkpoint: Checkpoint
    lock: Lock
    """Lock of the output folder, held by this run."""
    local: bool = False
    progress: TextIO | None = None
    options: RunOptions = DEFAULT_OPTIONS
    after_finish: AfterFinish | None = None
    plan: Plan | None = None
    """Plan of the work, once the source is listed."""
    _begun: RunRecord | None = None
    _calibration: ConfidenceModel | None = None
    _gave_up: bool = False
    _committed: Tally = field(default_factory=Tally)
    _activity: Activity = field(default_factory=Activity)
    _hooks: dict[str, "HookCounts"] = field(default_factory=dict)
    _started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    _started_s: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> OutputStore:
        """The output folder, writable by this run."""
        return self.lock.store

    @classmethod
    @contextmanager
    def open(
        cls,
        config: RunConfig,
        checkpoint: Checkpoint,
        *,
        local: bool = False,
        progress: TextIO | None = None,
        options: RunOptions = DEFAULT_OPTIONS,
    ) -> Iterator["CorpusRun"]:
        """Lock the output folder for a run while the context is open."""
        store = OutputStore.of(config.output)
        say = line_writer(progress)
        with Lock(store, new_run_id(), steal=options.steal_lock, say=say) as lock:
            yield cls(
                config=config,
                checkpoint=checkpoint,
                lock=lock,
                local=local,
                progress=progress,
                options=options,
            )

    def start(self) -> Plan:
        """List the source, leave out what is committed, and write what belongs to the run."""
        config, store = self.config, self.store
        revision, name = self.checkpoint.revision, self.checkpoint.fingerprint
        if not self.local:
            ray_address()  # a wrong one is refused before anything is listed
        calibrates = config.pipeline != CLASSIFY_AUDIO
        if calibrates and config.model.calibration is not None:  # before anything is listed
            self._calibration = calibration_for(
                config, store, model_revision=revision, family=self.checkpoint.family_name
            )
        if read_change(store) or Forgotten.read(store).entries:
            from corpus_asr.storage.run_state.forget import finish_killed

            finish_killed(store)
        with closing(IsolatedInspection(timeout_s=config.extract.item_timeout_s)) as inspect:
            self.plan = make_plan(
                config, store, model_revision=name, options=self.options, inspect=inspect
            )
        say = line_writer(self.progress)
        for words in self.plan.notes():
            say(words)
        if self.plan.redo is not None:
            # Before the folder has the settings of now: by these nothing earlier would be done.
            note_redo(store, self.plan.redo)
        self._begun = begin_run(
            store,
            config,
            fingerprint(config, name),
            run_id=self.lock.run_id,
            redo=self.options.redo is not None,
            started=self._started,
            listing=read_listing(store, self.plan.name, ["uri"]),
            family=self.checkpoint.family_name,
        )
        note_listing(store, self.plan.name, config.source)
        if self.plan.identities.newcomers:
            from corpus_asr.storage.run_state.rewriting import write_identities

            write_identities(store, self.plan.identities)
        else:
            self.plan.identities.write(store)
        if self.plan.forgotten is not None and self.plan.forgotten.is_changed:
            self.plan.forgotten.write(store)
        name_run(self._begun.run_id)
        # That of the folder, of whose settings the run is by now.
        if calibrates and config.model.calibration is None:
            self._calibration = calibration_for(
                config, store, model_revision=revision, family=self.checkpoint.family_name
            )
        return self.plan

    def process(self) -> None:
        """Extract features on CPUs, transcribe or classify them, and commit tables as they come."""
        assert self.plan is not None, "start() comes first"
        assert self._begun is not None
        # Neither Ray nor a model starts for nothing: a nightly run often finds nothing new.
        if not self.plan.num_remaining or self._out_of_time():
            return
        config = self.config
        committer = Committer(
            store=self.store,
            run_id=self._begun.run_id,
            model=model_name(config.model),
            model_revision=self.checkpoint.revision,
            by_language=self.checkpoint.models_by_language,
            calibration=self._calibration,
            patience_s=config.output.patience_s,
        )
        with self._workers(self.plan) as (resources, work):
            line_writer(self.progress)(resources.describe())
            progress = Progress(
                total_files=self.plan.num_remaining,
                planned=self.plan.remaining.strata,
                workers=resources.transcribe_workers,
                stream=self.progress,
                started_s=self._started_s,
            )
            writer = ProgressWriter(
                self.store, progress, run_id=committer.run_id, plan=self.plan, resources=resources
            )

            def sampled(found: Strata) -> None:
                progress.sampled = found

            with (
                progress.shown(),
                writer.writing(),
                surveying(self.plan, config, sampled),
            ):
                work(
                    committer,
                    resources=resources,
                    progress=progress,
                    engine_factory=load_engine,
                    options=self.options,
                )
                progress.is_over = True
        self._committed, self._activity = progress.tally, progress.read_activity()
        self._gave_up = progress.is_futile(progress.tally)
        for worker in progress.taken_out:
            line_writer(self.progress)(f"taken out of work, as it failed alone: {worker}")

    @contextmanager
    def _workers(self, plan: Plan) -> Iterator[tuple[Resources, Callable[..., None]]]:
        """Yield the resources, and the function that executes the plan with them."""
        config = self.config
        if self.local:
            resources = resolve_resources(
                config, (this_machine(),), num_packs=plan.num_packs, in_process=True
            )
            yield resources, partial(run_local, config, read_packs(self.store, plan))
            return
        # Importing Ray takes seconds, and local runs do not need it.
        from corpus_asr.runtime.ray_cluster import connected
        from corpus_asr.runtime.ray_dataset import run_on_ray

        packs = [self.store.address(name) for name in plan.pack_names]
        address = ray_address()
        with connected(address, store_bytes=store_bytes_for(config, local_machine())) as cluster:
            if cluster.joined is not None:
                line_writer(self.progress)(f"joined {cluster.joined}")
            resources = resolve_resources(
                config,
                cluster.nodes,
                num_packs=plan.num_packs,
                store_bytes=cluster.store_bytes,
                # Other clusters may provision machines for the requested resources.
                fixed=address == "local",
            )
            yield resources, partial(run_on_ray, config, packs)

    def finish(self) -> RunSummary:
        """Compact the tables, count them, and write run.json."""
        assert self.plan is not None, "start() comes first"
        assert self._begun is not None
        plan, store = self.plan, self.store
        out_of_time = self._out_of_time()
        if Forgotten.read(store).entries:
            from corpus_asr.storage.run_state.forget import forget_returned

            num_returned = forget_returned(store)
            plan.num_forgotten += num_returned
            plan.num_files -= num_returned
        if plan.num_remaining:
            store.relist()
        counts = self._finish_tables(plan, self._begun)
        speed = speed_of(store.read_json(RUN_NAME) or {})
        if self.after_finish is not None:
            self.after_finish(store, counts.recordings)
        if (futile := self._futile(plan, counts.remaining)) is not None:
            raise futile
        if counts.remaining and not out_of_time:
            raise EngineError(
                f"finishing {store.uri}: {counts.remaining} of {counts.listed} recordings are "
                "neither done nor failed, expected none; run again to process them"
            )
        return RunSummary(
            **asdict(counts),
            output_uri=store.uri,
            run_id=self._begun.run_id,
            planned=plan.num_remaining,
            speed=speed,
            moved=plan.num_moved,
            erased=plan.num_forgotten,
            made="labels" if self.config.pipeline == CLASSIFY_AUDIO else "segments",
            hooks=self._hooks,
        )

    def _futile(self, plan: Plan, remaining: int) -> EngineError | None:
        """Return the error if all recordings of the run failed for a reason outside them."""
        alike = self._committed.alike
        if alike is None or alike.count < FEWEST_ALIKE:
            return None
        all_tried = alike.count >= plan.num_remaining
        # Retries of a few in an otherwise complete archive are no evidence against a run.
        is_retrying = plan.num_retried == plan.num_remaining and plan.num_done > 0
        if all_tried and is_retrying and alike.count < ENOUGH_ALIKE:
            return None
        if not all_tried and not self._gave_up:
            return None
        subject = "recordings" if all_tried else "processed recordings"
        rest = "" if all_tried else f", {counted(remaining, 'recording')} remain"
        # Without the advice for one recording: the kind has that for all.
        example = alike.message.partition("; ")[0] or ", ".join(alike.examples[:1])
        return EngineError(
            f"running {redact_uri(self.store.uri)}: all {alike.count:,} {subject} failed alike "
            f"({alike.kind}), such as {shortened(example, 500)}, expected some to be read{rest}; "
            f"{failure_kind(alike.kind).advice}"
        )

    def _finish_tables(self, plan: Plan, begun: RunRecord) -> OutcomeCounts:
        return finish(
            self.store,
            begun,
            self.config,
            model_revision=self.checkpoint.fingerprint,
            listing=read_listing(self.store, plan.name),
            num_listed=plan.num_files,
            plan_name=plan.name,
            idle=not plan.num_remaining,
            extra={
                "plan": plan.as_data(),
                "committed": asdict(self._committed),
                "activity": asdict(self._activity),
                "calibration": (self._calibration or DEFAULT_MODEL).name,
            },
            before_merging=self._place_words_once,
            before_success=self._compare_recordings,
        )

    def _place_words_once(self, tables: RunTables) -> int:
        if not self.config.decoding.align:
            return 0
        from corpus_asr.runtime.complete_recordings import place_words_once

        return place_words_once(self.store, tables)

    def _compare_recordings(self) -> dict[str, Any]:
        """Make what needs whole recordings; return what `run.json` says of it."""
        if self.config.speakers.wanted:
            from corpus_asr.runtime.complete_recordings import find_speakers_of_run

            spread = None if self.local else partial(self._on_workers, retries=_RETRIES)
            find_speakers_of_run(self.store, self.config.speakers, spread)
        # Existing duplicates follow their recordings even if no new fingerprints are made.
        if "fingerprint" in self.config.extract.measures or self.store.is_noted(DUPLICATES_FOLDER):
            from corpus_asr.storage.run_state.duplicates import find_duplicates

            find_duplicates(self.store)
        stop_at = self.options.stop_at
        ends_at_s = None if stop_at is None else time.time() + stop_at - time.monotonic()
        for hook in self.config.hooks:
            from corpus_asr.runtime.hooks import run_hook

            self._hooks[hook.name] = run_hook(
                self.store,
                hook,
                workers=None if self.local else self._on_workers,
                ends_at_s=ends_at_s,
            )
        hooks = {name: asdict(counts) for name, counts in self._hooks.items()}
        return {"hooks": hooks} if hooks else {}

    def _on_workers(
        self, work: Callable[[T], R], portions: Iterable[T], *, retries: int = 0
    ) -> Iterator[R | LostPortion]:
        waiting = iter(portions)
        first = [*itertools.islice(waiting, 1)]
        if first:  # Ray takes a while to start
            from corpus_asr.runtime.ray_workers import on_workers

            with self._at_once() as at_once:
                portions = itertools.chain(first, waiting)
                yield from on_workers(work, portions, at_once=at_once, retries=retries)

    @contextmanager
    def _at_once(self) -> Iterator[int]:
        """Connect to Ray; yield the maximum number of concurrent tasks."""
        from corpus_asr.runtime.ray_cluster import connected

        address = ray_address()
        store_bytes = store_bytes_for(self.config, local_machine())
        with connected(address, store_bytes=store_bytes) as cluster:
            yield 2 * max(1, sum(node.cores for node in cluster.nodes))

    def _out_of_time(self) -> bool:
        stop_at = self.options.stop_at
        return stop_at is not None and time.monotonic() >= stop_at
