"""The pipeline as a Ray dataset: plan, extract, transcribe, commit.

Everything Ray Data would otherwise choose in a way that loses, doubles or hangs is set here, with
the reason beside it. Workers commit, so a killed driver loses nothing that was written.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources

from corpus_asr.activity import Activity
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CorpusAsrError, EngineError
from corpus_asr.logs import LogSettings, event
from corpus_asr.runtime.commit import Committer, Tally
from corpus_asr.runtime.coordinator import Look, WorkerState, start_coordinator
from corpus_asr.runtime.passes import (
    EXTRACT,
    FEW_PER_WORKER,
    MAX_PASSES,
    TRANSCRIBE,
    Done,
    Pass,
    Suspects,
    avoided,
    next_pass,
    packs_of,
    read_deaths,
    resources_for,
)
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.ray_cluster import RayWatch
from corpus_asr.runtime.ray_commits import Commits
from corpus_asr.runtime.resources import STORE_SHARE_AHEAD, Resources
from corpus_asr.runtime.shutdown import Stop, stoppable
from corpus_asr.runtime.workers import ExtractWorker, TranscribeWorker
from corpus_asr.stages.extract import REPORTING_EXTRACTOR
from corpus_asr.stages.transcribe import EngineFactory, EngineSpec, load_engine
from corpus_asr.storage.run_state.portions import Lost
from corpus_asr.storage.stores.filesystem import StoreOptions, open_store
from corpus_asr.units import counted

_LOG = logging.getLogger(__name__)

# Actors that may die in a row while starting before the run is given up; Ray's default is none.
MAX_ACTOR_INIT_DEATHS = 3
# How late the line is, and how soon a signal reaches the workers.
POLL_S = 1.0
T = TypeVar("T")
R = TypeVar("R")
# Questions to the coordinator, two seconds each, after which it is taken for frozen.
MOST_UNANSWERED = 60
# Looks, a second each, at a run that seems futile: what workers decode is known seconds later.
FUTILE_LOOKS = 10
# Where all known workers of a stage were taken out of work, another may report within that time
# after the last sign of any work.
NEWCOMER_S = 60.0
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
_RETRIES = 3  # of a task whose machine goes
_DIED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
)
_FULL = (ray.exceptions.OutOfDiskError, ray.exceptions.ObjectStoreFullError)
_RAY_ADVICE = "\nFailed to apply UDF transform"


def run_on_ray(
    config: RunConfig,
    packs: Sequence[str],
    committer: Committer,
    *,
    resources: Resources,
    progress: Progress,
    engine_factory: EngineFactory = load_engine,
    extractor: str = REPORTING_EXTRACTOR,
    stop_at: float | None = None,
) -> None:
    """Transcribe what a plan's objects of packs name on the connected Ray, and commit all of it.

    Raises:
        EngineError: no worker can work, or something is not done after the last pass.
    """
    coordinator = start_coordinator()
    total = Tally()
    with (
        stoppable(lambda: progress.files_left, at=stop_at) as stop,
        DataContext.current(_context(config, resources)),
        warnings.catch_warnings(),
    ):
        # Of a small run, or of what a pass left, there are fewer blocks than workers.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
        progress.read_left_s = lambda: stop.left_s
        workers = resources.transcribe_workers
        commits = Commits(committer, config.output, coordinator, num_workers=workers)
        with _Poll(coordinator, progress, stop, commits) as poll:
            passes = _Passes(config, packs, committer, resources, coordinator, commits, poll)
            try:
                total = passes.run(lambda: stop.requested, engine_factory, extractor)
            except Exception as error:
                raise own_error(error) from error
        # The coordinator's count is of what it has seen: it may have died meanwhile.
        progress.set(total)


class _Passes:
    """The passes of a run."""

    def __init__(
        self,
        config: RunConfig,
        packs: Sequence[str],
        committer: Committer,
        resources: Resources,
        coordinator: Any,
        commits: Commits,
        poll: "_Poll",
    ) -> None:
        self._config, self._committer = config, committer
        self._resources, self._coordinator, self._poll = resources, coordinator, poll
        self._packs, self._commits = packs, commits
        self._done = Done()
        self._suspects = Suspects()
        self._poison = Tally()

    def run(self, stopping: Callable[[], bool], engine: EngineFactory, extractor: str) -> Tally:
        """Work until everything is committed; return the count of that."""
        current, resources = Pass(), self._resources
        planned = planned_packs(self._config, self._packs)
        num_files = self._poll.files_left
        while True:
            self._poll.watch(current, resources, num_files)
            dataset = build(
                self._config,
                planned,
                resources=resources,
                coordinator=self._coordinator,
                engine=engine,
                extractor=extractor,
                of=current,
            )
            self._commit(dataset)
            left = [] if stopping() else self._left(current)
            if not left:
                return self._commits.tally + self._poison
            if current.number == MAX_PASSES:
                raise _not_done(len(left), self._suspects)
            num_files = len(left)
            current, resources = self._next(current, num_files)
            planned = ray.data.from_arrow(packs_of(left))

    def _commit(self, dataset: Dataset) -> None:
        """Run a pass and commit what it yields."""
        results = dataset.iter_internal_ref_bundles()
        try:
            for bundle in results:
                for block in bundle.blocks:
                    if block.metadata.num_rows:
                        self._commits.add(block.ref, block.metadata.size_bytes or 0)
            self._poll.end_watch()
            self._commits.settle()
        except BaseException:
            del results  # with its last reference Ray Data ends its work
            raise

    def _left(self, current: Pass) -> list[dict[str, Any]]:
        """Return the files that are not complete, once what ended workers twice is given up."""
        store = self._committer.store
        deaths = read_deaths(store, current)
        if not (deaths.num_rows or self._poll.disturbed or self._commits.lost):
            return []
        # Only now is it of interest which parts were committed.
        self._done.read(store, self._commits.names)
        self._suspects.add(deaths, current)
        left = self._done.left(store, self._plan())
        poison = self._suspects.take_poison(left)
        if poison.num_rows:
            committed = self._committer(poison)
            self._poison += committed.tally
            self._coordinator.add.remote(committed.tally, committed.spent)
            self._done.read(store, committed.names)
            left = list(self._done.remaining([packs_of(left)]))
        return left

    def _plan(self) -> Iterator[pa.Table]:
        planned = planned_packs(self._config, self._packs)
        for batch in planned.iter_batches(batch_format="pyarrow", batch_size=64):
            assert isinstance(batch, pa.Table)
            yield batch

    def _next(self, current: Pass, num_left: int) -> tuple[Pass, Resources]:
        resources = self._resources
        alive: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node for node in alive if node["Alive"]]
        gpus = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
        following = next_pass(
            current,
            self._suspects,
            few=num_left <= FEW_PER_WORKER * resources.transcribe_workers,
            bad=self._poll.bad_gpus,
            devices={EXTRACT: len(nodes), TRANSCRIBE: gpus or len(nodes)},
        )
        less = resources_for(following, resources, num_files=num_left, num_nodes=max(1, len(nodes)))
        event(
            _LOG, logging.WARNING, "next_pass", number=following.number, recordings=num_left,
            alone=following.alone, why=list(self._suspects.reasons)[-3:],
        )  # fmt: skip
        return following, less


def _not_done(num_files: int, suspects: Suspects) -> EngineError:
    return EngineError(
        f"transcribing: {counted(num_files, 'recording')} not done after {MAX_PASSES} tries on "
        f"different workers, expected none; workers failed: {'; '.join(suspects.reasons)}; see "
        "their logs, and run again to continue: what was committed is kept"
    )


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
    context.max_errored_blocks = 0  # drops whole blocks of good rows
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
    """Return the PACKS rows of a plan's objects."""
    options = StoreOptions.of_output(config.output)
    filesystems, paths = zip(*(open_store(uri, options) for uri in packs), strict=True)
    # Ray would cut each object into hundreds of blocks, and make a task for each to cut it again.
    return ray.data.read_parquet(
        list(paths), filesystem=filesystems[0], override_num_blocks=len(paths)
    )


def build(
    config: RunConfig,
    planned: Dataset,
    *,
    resources: Resources,
    coordinator: Any,
    engine: EngineFactory,
    extractor: str,
    of: Pass,
) -> Dataset:
    """Return the lazy dataset of RESULTS rows; the current `DataContext` is baked into it."""
    # Packs are tasks of their own, so that idle workers find one as long as there are any.
    tasks = planned.repartition(target_num_rows_per_block=resources.packs_per_task)
    parts = tasks.map_batches(
        ExtractWorker,
        fn_constructor_args=(config,),
        fn_constructor_kwargs={
            "coordinator": coordinator,
            "logs": LogSettings.from_environment(),
            "of": of,
            "extractor": extractor,
        },
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
        memory=resources.extract_memory_bytes,
    )
    return parts.map_batches(
        TranscribeWorker,
        fn_constructor_kwargs={
            "coordinator": coordinator,
            "logs": LogSettings.from_environment(),
            "of": of,
            "spec": EngineSpec(
                config=config,
                device=resources.device,
                num_threads=resources.transcribe_threads,
                gpu_fraction=resources.transcribe_gpus or 1.0,
            ),
            "engine_factory": engine,
        },
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
    )


def on_workers(work: Callable[[T], R], portions: Iterable[T], *, at_once: int) -> Iterator[R]:
    """Yield what becomes of portions, in any order: tasks of one CPU each on the connected Ray."""
    for found in on_mortal_workers(work, portions, at_once=at_once, retries=_RETRIES):
        if isinstance(found, Lost):
            raise found.error
        yield found


def on_mortal_workers(
    work: Callable[[T], R], portions: Iterable[T], *, at_once: int, retries: int = 0
) -> Iterator[R | Lost]:
    """Do as `on_workers`; yield also those portions with which processes end."""
    task: Any = ray.remote(num_cpus=1, max_retries=retries)(lambda work, portion: work(portion))
    shared, waiting = ray.put(work), dict[Any, T]()
    try:
        for portion in portions:
            waiting[task.remote(shared, portion)] = portion
            if len(waiting) >= at_once:
                yield _first_done(waiting)
        while waiting:
            yield _first_done(waiting)
    except ray.exceptions.RayError as error:
        raise own_error(error) from error


def _first_done(waiting: dict[Any, T]) -> Any:
    [done], _ = ray.wait([*waiting])
    portion = waiting.pop(done)
    try:
        return ray.get(done)
    except _DIED as error:
        return Lost(portion, own_error(error))


def own_error(error: BaseException) -> CorpusAsrError:
    """Find this package's error in what Ray raised, or wrap the rest as an `EngineError`."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    # Breadth first: the outermost of our errors is the one with words for the user.
    while queue:
        cause = queue.pop(0)
        if cause is None or cause in seen:
            continue
        seen.append(cause)
        # By its module: Ray makes classes that are subclasses of ours and of its own.
        if type(cause).__module__ == CorpusAsrError.__module__:
            assert isinstance(cause, CorpusAsrError)
            # Ray 2.60 appends advice about its own retries to the message.
            return type(cause)(str(cause).split(_RAY_ADVICE)[0])
        if isinstance(cause, _FULL):
            return _no_room(cause)
        queue += [getattr(cause, "cause", None), cause.__cause__, cause.__context__]
    last_line = str(error).strip().splitlines()[-1] if str(error).strip() else ""
    return EngineError(
        f"running the pipeline on Ray: {type(error).__name__}: {last_line}; everything committed "
        "so far is kept, and running again continues from there"
    )


def _no_room(error: BaseException) -> EngineError:
    # On a cluster it may have been another machine; its places have the same names.
    places = [place for place in ("/dev/shm", tempfile.gettempdir()) if Path(place).is_dir()]
    free = ", ".join(f"{shutil.disk_usage(place).free:,} bytes in {place}" for place in places)
    return EngineError(
        f"keeping features for the next stage in Ray's object store: {type(error).__name__}, "
        f"found {free} free on the driver's machine, expected room in shared memory and for what "
        "is spilled; free some, start Ray with a larger object store or with its temporary folder "
        "(RAY_TMPDIR) on a larger disk, or lower extract.part_s or transcribe.slots; what was "
        "committed is kept, and running again continues from there"
    )


def hopeless_stages(look: Look, wanted: Mapping[str, int]) -> list[str]:
    """Return the stages that need so many workers and cannot expect one to work.

    All known ones were taken out of work. Another may be starting, on a machine that is still to
    come, or has yet to tell a new coordinator that it works: there is time as long as others work.
    """
    num_out = Counter(state.stage for state in look.out)
    return [
        stage
        for stage in look.idle_stages
        if stage in wanted and (num_out[stage] >= wanted[stage] or look.quiet_s > NEWCOMER_S)
    ]


class _Poll(threading.Thread):
    """Copies counts from the coordinator and requests to stop to it, and commits in time.

    A coordinator that died is followed by one that knows nothing: it is told each time, and what
    its predecessor had counted is kept.
    """

    def __init__(self, coordinator: Any, progress: Progress, stop: Stop, commits: Commits) -> None:
        super().__init__(name="poll-coordinator", daemon=True)
        self._commits = commits
        self._coordinator = coordinator
        self._progress = progress
        self._stop_asked = stop
        self._watch = RayWatch()
        self._unanswered = 0
        self._futile = 0
        self._finished = threading.Event()
        self._look: Look | None = None
        # What coordinators that died had counted.
        self._before, self._did = Tally(), Activity()
        self._current = Pass()
        # Workers that each stage needs; files that the passes so far gave to extraction.
        self._wanted: dict[str, int] = {}
        self._files_planned = 0
        self.disturbed = False
        """Whether a worker was replaced, or the coordinator, during the pass."""
        self._out: dict[str, WorkerState] = {}
        self._no_worker: EngineError | None = None

    def watch(self, current: Pass, resources: Resources, num_files: int) -> None:
        """Look after the workers of this pass over so many recordings from now on."""
        self._current, self.disturbed = current, False
        self._coordinator.begin_pass.remote()
        self._files_planned += num_files
        self._wanted = {
            EXTRACT: resources.extract_workers, TRANSCRIBE: resources.transcribe_workers
        }  # fmt: skip

    def end_watch(self) -> None:
        """Expect nothing more of the workers of this pass: all they had to do is done."""
        self._wanted = {}

    @property
    def files_left(self) -> int:
        """Recordings that are not committed yet."""
        return self._progress.files_left

    @property
    def bad_gpus(self) -> frozenset[str]:
        """The GPUs whose workers were taken out of work, as `Pass.avoided`."""
        out = [state for state in self._out.values() if state.device.gpus]
        return frozenset(avoided(state.stage, state.device.id) for state in out)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self.join()
        self._watch.close()

    def run(self) -> None:
        while not self._finished.wait(POLL_S):
            self._stop_asked.failure = self._watch.lost() or self._no_worker
            if self._stop_asked.failure is None:
                self._commits.poll(hurry=self._stop_asked.requested)
                if self._commits.failure is not None:
                    self._stop_asked.failure = own_error(self._commits.failure)
            if self._stop_asked.failure is None:
                self._copy()
            if self._stop_asked.failure or self._stop_asked.expired:
                # Only a signal gets the main thread out of Ray; jobs of cron's shell ignore SIGINT.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                break
        else:
            self._copy()
        if self._stop_asked.failure and not self._finished.wait(LEAVE_S):
            # It waits for what is gone. The lock of a dead process is free.
            os.write(2, f"corpus-asr: {self._stop_asked.failure}\n".encode())
            os._exit(_STOPPED_BY_FAILURE)

    def _copy(self) -> None:
        try:
            stop = self._stop_asked.requested
            looking = self._coordinator.look.remote(self._current.token, stop=stop)
            self._show(ray.get(looking, timeout=POLL_S))
            self._unanswered = 0
        except ray.exceptions.RayError:
            # Only the line is late; if Ray is gone, the run itself says so.
            event(_LOG, logging.DEBUG, "board_not_read", exc_info=True)
            self._unanswered += 1
            self.disturbed = True
        if self._unanswered == MOST_UNANSWERED:
            self._unanswered = 0
            event(_LOG, logging.WARNING, "worker_replaced", why="the coordinator does not answer")
            ray.kill(self._coordinator, no_restart=False)

    def _show(self, look: Look) -> None:
        if self._look is not None and look.life != self._look.life:
            # What its predecessor had counted is kept.
            self._before += self._look.tally
            self._did += replace(self._look.activity, longest_left_s=0.0)
            self.disturbed = True
        self._look = look
        self._progress.set(self._before + look.tally)
        activity = self._did + look.activity
        self._progress.read_activity = lambda: activity
        futile = self._progress.is_futile(self._progress.tally)
        self._futile = self._futile + 1 if futile else 0
        if self._futile == FUTILE_LOOKS:
            self._stop_asked.give_up()
        for why in look.replaced:
            event(_LOG, logging.WARNING, "worker_replaced", why=why)
            self.disturbed = True
        if activity.files_extracted >= self._files_planned:
            self._wanted = {s: number for s, number in self._wanted.items() if s != EXTRACT}
        self._take_out(look)

    def _take_out(self, look: Look) -> None:
        for state in look.out:
            if state.worker not in self._out:
                self._out[state.worker] = state
                self.disturbed = True
                event(
                    _LOG, logging.ERROR, "worker_taken_out", stage=state.stage,
                    device=str(state.device), node=state.device.node_id, error=state.out,
                )  # fmt: skip
                self._progress.taken_out += (f"{state.device}: {state.out}",)
        without = hopeless_stages(look, self._wanted)
        if without:
            whys = dict.fromkeys(f"{s.device}: {s.out}" for s in look.out if s.stage in without)
            self._no_worker = EngineError(
                f"no {' and no '.join(without)} worker can work, expected at least one: "
                f"{'; '.join(whys)}; what was committed is kept, and running again continues "
                "from there"
            )
