"""The pipeline as a Ray dataset: plan, extract, transcribe, commit.

Everything Ray Data would otherwise choose in a way that loses, doubles or hangs is set here, with
the reason beside it. Workers commit, so a killed driver loses nothing that was written.
"""

import logging
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from operator import attrgetter
from typing import Any, Self

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources

from corpus_asr.activity import Activity
from corpus_asr.config.run import DEFAULT_OPTIONS, RunConfig, RunOptions
from corpus_asr.errors import CorpusAsrError, EngineError
from corpus_asr.logs import LogSettings, event
from corpus_asr.runtime.commit import Committer
from corpus_asr.runtime.coordinator import RunStatus, TakenOut, start_coordinator
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.ray_cluster import RayWatch
from corpus_asr.runtime.ray_workers import (
    Commits,
    RecordingWorkers,
    hand_over,
    is_hopeless,
    own_error,
)
from corpus_asr.runtime.resources import STORE_SHARE_AHEAD, Resources
from corpus_asr.runtime.second_try import RetriedRecording, each_alone, recordings_left
from corpus_asr.runtime.shutdown import Stop, stoppable
from corpus_asr.runtime.workers import (
    ALONE,
    EXTRACT,
    TRANSCRIBE,
    ExtractWorker,
    RecordingWorker,
    TranscribeWorker,
)
from corpus_asr.stages.extract import EXTRACTOR
from corpus_asr.stages.transcribe import EngineFactory, EngineSpec, load_engine
from corpus_asr.storage.run_state.recording_rows import LostPortion
from corpus_asr.storage.run_state.table_names import INTERNAL_SUFFIX
from corpus_asr.storage.stores.filesystem import StoreOptions, open_store
from corpus_asr.units import counted

_LOG = logging.getLogger(__name__)

# Consecutive deaths of starting actors before the run is aborted; Ray's default is none.
MAX_ACTOR_INIT_DEATHS = 3
# Delay of the progress line, and of signals to workers.
POLL_S = 1.0
# Polls of a run that seems futile: what workers decode is known seconds later.
FUTILE_POLLS = 10
# For Ray Data to take its things down when Ray has died.
LEAVE_S = 15.0
_STOPPED_BY_FAILURE = 3
_LOG_LEVELS = {
    "ray.data": logging.WARNING,
    # Says that progress bars are off, as was asked.
    "ray.data._internal.progress": logging.ERROR,
    # Print the traceback of an error that is raised all the same.
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
}
# Retries of a call whose worker or machine ended; then it is left to the second try.
_RETRIES = 1
# Second tries of what is missing, where machines go that had results of the one before.
_MOST_SECOND_TRIES = 3
_PACKS_AT_ONCE = 1_024  # looked at for what is missing
_STAGES: tuple[str, ...] = (EXTRACT, TRANSCRIBE)
# Counts of which one grows as long as a worker of a stage lives, or does a stage after it.
_SIGNS_OF_LIFE = {
    EXTRACT: attrgetter("extract_alive_s", "windows", "steps", "parts_transcribed"),
    TRANSCRIBE: attrgetter("load_s", "transcribe_alive_s"),
}


def run_on_ray(
    config: RunConfig,
    packs: Sequence[str],
    committer: Committer,
    *,
    resources: Resources,
    progress: Progress,
    engine_factory: EngineFactory = load_engine,
    extractor: str = EXTRACTOR,
    options: RunOptions = DEFAULT_OPTIONS,
) -> None:
    """Transcribe what a plan's objects of packs name on the connected Ray, and commit all of it.

    Raises:
        EngineError: no worker can work, or something is not done after all tries.
    """
    coordinator = start_coordinator()
    with (
        stoppable(lambda: progress.files_left, at=options.stop_at) as stop,
        DataContext.current(_context(config, resources)),
        warnings.catch_warnings(),
    ):
        # A small run has fewer blocks than workers.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
        # Ray 2.60 names no other way to say how often an actor's calls are repeated.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        progress.read_left_s = lambda: stop.left_s
        workers = resources.transcribe_workers
        commits = Commits(committer, config.output, num_workers=workers)
        num_files = progress.files_left
        spec = EngineSpec(
            config=config,
            device=resources.device,
            num_threads=resources.transcribe_threads,
            gpu_fraction=resources.transcribe_gpus or 1.0,
        )
        shared = {"coordinator": coordinator, "logs": LogSettings.from_environment()}
        extracting = shared | {"extractor": extractor}
        loading = shared | {"spec": spec, "engine_factory": engine_factory}
        planned = planned_packs(config, packs)
        transcribing = loading | {"commit_actors": commits.actors}
        dataset = build(
            config, planned, resources, extracting=extracting, transcribing=transcribing
        )

        def read_uncommitted() -> list[RetriedRecording]:
            # Only now is it of interest which parts were committed.
            recordings, commits.tally = recordings_left(
                committer.store,
                planned.iter_batches(batch_format="pyarrow", batch_size=_PACKS_AT_ONCE),
                run_id=committer.run_id,
                options=options,
            )
            return recordings

        workers_alone = partial(
            RecordingWorkers,
            partial(_recording_worker, resources, **extracting | loading),
            patience_s=resources.no_progress_timeout_s,
            stopping=lambda: stop.requested,
            replaced=coordinator.replace.remote,
        )
        with _Poll(coordinator, commits, progress, stop, resources) as poll:
            try:
                _commit_all(dataset, commits, poll.check_ray)
                poll.end_watch()
                if not commits.has_all_of(num_files):
                    _try_again(commits, stop, read_uncommitted, workers_alone, most_workers=workers)
            except Exception as error:
                raise own_error(error) from error


def _commit_all(dataset: Dataset, commits: Commits, check_ray: Callable[[], object]) -> None:
    """Run a dataset, and commit what its workers found; `check_ray` raises if Ray has died."""
    results = dataset.iter_internal_ref_bundles()
    try:
        for bundle in results:
            for block in bundle.blocks:
                if block.metadata.num_rows:
                    # Lost with a machine, they are looked for afterwards.
                    with suppress(ray.exceptions.ObjectLostError):
                        commits.expect(ray.get(block.ref))
    except ray.exceptions.RayActorError as error:
        # Too many workers ended while they began: what is missing finds out which can work. Where
        # it was Ray itself that died, another call of it would end this process.
        check_ray()
        event(_LOG, logging.WARNING, "worker_replaced", why=str(error))
    finally:
        del results  # with its last reference Ray Data ends its work
    commits.settle()


def _try_again(
    commits: Commits,
    stop: Stop,
    read_uncommitted: Callable[[], list[RetriedRecording]],
    start: Callable[..., RecordingWorkers],
    *,
    most_workers: int,
) -> None:
    """Do what is left, a recording at a time; commit what comes of it, or that it is poison."""
    for _ in range(_MOST_SECOND_TRIES):
        if stop.requested or not (recordings := read_uncommitted()):
            return
        event(_LOG, logging.WARNING, "second_try", recordings=len(recordings))
        with closing(start(num_workers=min(most_workers, len(recordings)))) as workers:
            for outcome in each_alone(workers, recordings):
                is_lost = isinstance(outcome, LostPortion)
                results = outcome.portion.poison() if is_lost else outcome
                hand_over(results, commits.actors[0])
            commits.settle()
    if not stop.requested and (recordings := read_uncommitted()):
        raise EngineError(
            f"transcribing: {counted(len(recordings), 'recording')} not done after "
            f"{_MOST_SECOND_TRIES} attempts, expected none; see the workers' logs, and run again "
            "to continue from the last commit"
        )


def _recording_worker(resources: Resources, **options: Any) -> Any:
    """Start an actor with the share of a machine that an engine has."""
    worker = ray.remote(num_cpus=resources.transcribe_cpus, num_gpus=resources.transcribe_gpus)(
        RecordingWorker
    )
    return worker.remote(**options)


def _context(config: RunConfig, resources: Resources) -> DataContext:
    """Return the settings of a dataset, which have to be set before it is made."""
    with warnings.catch_warnings():
        # Ray 2.60 warns of its own deprecated fields whenever it fills them with their defaults.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current().copy()
    context.target_max_block_size = resources.block_bytes
    context.target_min_block_size = 1
    # The bound on features that wait: in bytes, or as a share that grows with the cluster.
    context.override_object_store_memory_limit_fraction = STORE_SHARE_AHEAD
    if config.extract.max_buffered_features_mb != "auto":
        limits = ExecutionResources.for_limits(object_store_memory=resources.ahead_bytes)
        context.execution_options.resource_limits = limits
    context.execution_no_progress_timeout_s = resources.no_progress_timeout_s
    context.use_datasource_v2 = False  # lists and reads footers in actors of its own: 4 s
    # Work of a worker that ended is left out and retried later. Errors that every recording
    # would meet are told to the coordinator.
    context.max_errored_blocks = -1
    context.actor_task_retry_on_errors = False
    context.retried_map_errors = False  # loses and doubles rows of generators
    context.max_consecutive_actor_init_deaths = MAX_ACTOR_INIT_DEATHS
    context.raise_original_map_exception = True  # else the type of our errors is lost
    # Rows name their recording and part: none has to wait for an earlier one.
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False  # they count blocks; ours counts recordings
    context.print_on_execution_start = False
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    return context


def planned_packs(config: RunConfig, packs: Sequence[str]) -> Dataset:
    """Return a dataset of the plan's PACKS rows."""
    options = StoreOptions.of_output(config.output)
    filesystems, paths = zip(*(open_store(uri, options) for uri in packs), strict=True)
    # Ray would split each object into hundreds of blocks, with a task for each.
    return ray.data.read_parquet(
        list(paths),
        filesystem=filesystems[0],
        file_extensions=[INTERNAL_SUFFIX],
        override_num_blocks=len(paths),
    )


def build(
    config: RunConfig,
    planned: Dataset,
    resources: Resources,
    *,
    extracting: Mapping[str, Any],
    transcribing: Mapping[str, Any],
) -> Dataset:
    """Return the lazy dataset of IDS rows; the current `DataContext` is baked into it.

    `extracting` and `transcribing` are what the constructors of workers take.
    """
    # Packs are tasks of their own, so that idle workers find one as long as there are any.
    tasks = planned.repartition(target_num_rows_per_block=resources.packs_per_task)
    parts = tasks.map_batches(
        ExtractWorker,
        fn_constructor_args=(config,),
        fn_constructor_kwargs=dict(extracting),
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=resources.extract_workers,
            initial_size=resources.extract_workers,
            # Packs waiting at a busy worker could be at work elsewhere; 2 keeps the pool growing.
            max_tasks_in_flight_per_actor=2,
        ),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=resources.extract_cpus,
        max_task_retries=_RETRIES,
    )
    return parts.map_batches(
        TranscribeWorker,
        fn_constructor_kwargs=dict(transcribing),
        compute=ActorPoolStrategy(
            size=resources.transcribe_workers,
            # One more than can run, so that the next call's features are there when one ends.
            max_tasks_in_flight_per_actor=resources.calls_in_flight + 1,
            max_concurrent_calls_per_actor=resources.calls_in_flight,
            enable_true_multi_threading=True,  # else the calls run one after another
        ),
        batch_size=resources.rows_per_call,
        batch_format="pyarrow",
        num_cpus=resources.transcribe_cpus,
        num_gpus=resources.transcribe_gpus or None,
        max_task_retries=_RETRIES,
    )


class _Poll(threading.Thread):
    """Counts what is committed, passes requests to stop to workers, and takes their errors.

    A coordinator that died is followed by one that knows nothing: it is told each time.
    """

    def __init__(
        self,
        coordinator: Any,
        commits: Commits,
        progress: Progress,
        stop: Stop,
        resources: Resources,
    ) -> None:
        super().__init__(name="poll", daemon=True)
        self._coordinator, self._commits = coordinator, commits
        self._progress, self._stop_request = progress, stop
        self._watch = RayWatch()
        self._answer: Any = None
        self._num_futile = 0
        self._finished = threading.Event()
        # Workers that each stage needs.
        self._num_needed = {
            EXTRACT: resources.extract_workers, TRANSCRIBE: resources.transcribe_workers
        }  # fmt: skip
        self._files_planned = progress.files_left
        # Signs of life of stages, and since when they are the same.
        self._lives: dict[str, tuple[Any, float]] = {}
        self._out: dict[str, TakenOut] = {}
        self._failure: CorpusAsrError | None = None

    def end_watch(self) -> None:
        """Expect nothing more of the workers of Ray Data: all they had to do is done."""
        self._num_needed = {}

    def check_ray(self) -> None:
        """Raise the `EngineError` to end a run with if Ray has died."""
        if failure := self._watch.lost():
            raise failure

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self.join()
        self._watch.close()

    def run(self) -> None:
        while not self._finished.wait(POLL_S):
            self._stop_request.failure = self._watch.lost() or self._failure
            if self._stop_request.failure is None:
                self._poll()
            if self._stop_request.failure or self._stop_request.expired:
                # Only a signal gets the main thread out of Ray; jobs of cron's shell ignore SIGINT.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                break
        else:
            self._poll()
        if self._stop_request.failure and not self._finished.wait(LEAVE_S):
            # It waits for what is gone. The lock of a dead process is free.
            os.write(2, f"corpus-asr: {self._stop_request.failure}\n".encode())
            os._exit(_STOPPED_BY_FAILURE)

    def _poll(self) -> None:
        try:
            self._commits.poll(hurry=self._stop_request.requested)
        except Exception as error:
            self._failure = own_error(error)
        self._progress.set(self._commits.tally)
        stopped = () if self._num_needed else _STAGES
        if self._stop_request.requested:
            stopped = (*_STAGES, ALONE)
        # One that does not answer is not asked again.
        self._answer = self._answer or self._coordinator.poll.remote(stopped)
        if ray.wait([self._answer], timeout=POLL_S)[0]:
            answer, self._answer = self._answer, None
            try:
                self._show(ray.get(answer))
            except ray.exceptions.RayError:
                # Only activity is late; if Ray is gone, the run itself says so.
                event(_LOG, logging.DEBUG, "coordinator_silent", exc_info=True)

    def _show(self, status: RunStatus) -> None:
        activity = status.activity + self._commits.activity
        self._progress.read_activity = lambda: activity
        is_futile = self._progress.is_futile(self._progress.tally)
        self._num_futile = self._num_futile + 1 if is_futile else 0
        if self._num_futile == FUTILE_POLLS:
            self._stop_request.give_up()
        for why in status.replaced:
            event(_LOG, logging.WARNING, "worker_replaced", why=why)
        for worker in (out for actor, out in status.out.items() if actor not in self._out):
            event(
                _LOG, logging.ERROR, "worker_taken_out", stage=worker.stage,
                device=str(worker.device), node=worker.device.node_id, error=worker.why,
            )  # fmt: skip
            self._progress.taken_out += (str(worker),)
        self._out |= status.out
        self._failure = status.failure or self._failure or self._no_worker(activity)

    def _no_worker(self, activity: Activity) -> EngineError | None:
        """Return the error of a stage of which no worker can be expected to work."""
        if activity.files_extracted >= self._files_planned:
            self._num_needed.pop(EXTRACT, None)
        out = self._out.values()
        num_out = Counter(worker.stage for worker in out)
        idle_s = {stage: self._idle_s(stage, activity) for stage in _SIGNS_OF_LIFE}
        without = [
            stage
            for stage, number in self._num_needed.items()
            if is_hopeless(num_out[stage], number, idle_s[stage])
        ]
        if not without:
            return None
        whys = dict.fromkeys(str(worker) for worker in out if worker.stage in without)
        return EngineError(
            f"no {' and no '.join(without)} worker can work, expected at least one: "
            f"{'; '.join(whys)}; run again to continue from the last commit"
        )

    def _idle_s(self, stage: str, activity: Activity) -> float:
        life, now_s = _SIGNS_OF_LIFE[stage](activity), time.monotonic()
        if self._lives.get(stage, (None, 0.0))[0] != life:
            self._lives[stage] = life, now_s
        return now_s - self._lives[stage][1]
