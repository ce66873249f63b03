"""What pipelines over a corpus share: a job and an engine in, tables and a summary out.

Only the order of things is decided here; each is done elsewhere. Safe to repeat: what is committed
is not done again, and a run with nothing left to do starts neither Ray nor a model. One run at a
time works on an output folder. What is found in a recording is the engine's business.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from corpus_asr.activity import Activity
from corpus_asr.confidence import DEFAULT_MODEL
from corpus_asr.config.choices import CONTINUE, Choices
from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig
from corpus_asr.errors import EngineError
from corpus_asr.logs import name_run
from corpus_asr.report.html.page import write_page_at_the_end
from corpus_asr.runtime.commit import Committer
from corpus_asr.runtime.local import run_local
from corpus_asr.runtime.progress import Progress, Stream, Tally
from corpus_asr.runtime.recorder import Recorder
from corpus_asr.runtime.resources import Resources, resolve_resources, store_bytes_for, this_machine
from corpus_asr.runtime.summary import RunSummary
from corpus_asr.runtime.weights import Weights
from corpus_asr.stages.transcribe import EngineFactory
from corpus_asr.storage.beginning import begin_run, fingerprint, new_run_id
from corpus_asr.storage.calibrations import calibration_for
from corpus_asr.storage.finish import finish
from corpus_asr.storage.hub_names import full_name
from corpus_asr.storage.lock import Lock
from corpus_asr.storage.plan import Plan, make_plan, read_listing, read_packs
from corpus_asr.storage.tables import OutputStore


def run_over_corpus(
    config: RunConfig,
    weights: Weights,
    engine_factory: EngineFactory,
    *,
    local: bool,
    progress: Stream | None,
    choices: Choices = CONTINUE,
) -> RunSummary:
    """Do what is left of the job, and finish its output folder.

    Args:
        config: the job.
        weights: its checkpoints.
        engine_factory: what loads the engine in each worker; pickled by reference.
        local: in this process, without Ray.
        progress: where lines about the run go; None for none.
        choices: how what earlier runs left is treated.

    Raises:
        ConfigError: the job cannot be done as configured, or another run is at work in the output
            folder; nothing was done.
        CheckpointError: the model cannot be had or loaded.
        EngineError: the work could not go on; what was committed is kept.
        FetchError: the output store or the listing failed.
    """
    store = OutputStore(config.output.uri, endpoint_url=config.output.endpoint_url)

    def say(words: str) -> None:
        if progress is not None:
            progress.write(words + "\n")

    with Lock(store, new_run_id(), steal=choices.steal_lock, say=say) as lock:
        return run_locked(
            config,
            store,
            lock,
            weights,
            engine_factory,
            local=local,
            progress=progress,
            choices=choices,
        )


def run_locked(
    config: RunConfig,
    store: OutputStore,
    lock: Lock,
    weights: Weights,
    engine_factory: EngineFactory,
    *,
    local: bool,
    progress: Stream | None,
    choices: Choices,
    on_plan: Callable[[Plan], object] = lambda plan: None,
) -> RunSummary:
    """Do the same under a lock that is held already, by the run that it names.

    Args:
        config, weights, engine_factory, local, progress, choices: as for `run_over_corpus`.
        store: the output folder.
        lock: of that folder.
        on_plan: told what there is to do before it is begun.
    """
    started = time.monotonic()
    calibration, calibrates = None, config.pipeline != CLASSIFY_AUDIO
    if calibrates and config.model.calibration is not None:  # before old results are archived
        calibration = calibration_for(config, store, model_revision=weights.revision)
    plan = make_plan(config, store, model_revision=weights.name, choices=choices)
    on_plan(plan)
    begun = begin_run(
        store,
        config,
        fingerprint(config, weights.name),
        run_id=lock.run_id,
        new_run=choices.new_run,
    )
    name_run(begun.run_id)
    if calibrates and config.model.calibration is None:
        calibration = calibration_for(config, store, model_revision=weights.revision)
    committer = Committer(
        uri=config.output.uri,
        endpoint_url=config.output.endpoint_url,
        run_id=begun.run_id,
        model=full_name(config.model.checkpoint),
        model_revision=weights.revision,
        by_language=weights.by_language,
        calibration=calibration,
        lock=lock.key,
    )
    committed, activity = Tally(), Activity()
    out_of_time = choices.stop_at is not None and time.monotonic() >= choices.stop_at
    if plan.num_remaining and not out_of_time:
        work = _work_here if local else _work_on_ray
        done = work(config, store, plan, committer, engine_factory, progress, choices.stop_at)
        committed, activity = done.tally, done.activity
        out_of_time = choices.stop_at is not None and time.monotonic() >= choices.stop_at
    lock.key.check()  # a finish tidies up: not under the hands of another run
    counts = finish(
        store,
        begun,
        config,
        model_revision=weights.name,
        listing=read_listing(store, plan),
        num_listed=plan.num_files,
        plan_name=plan.name,
        extra={
            "plan": asdict(plan),
            "committed": asdict(committed),
            "activity": asdict(activity),
            "calibration": (calibration or DEFAULT_MODEL).name,
        },
    )
    write_page_at_the_end(store, num_recordings=counts.recordings)
    if counts.left and not out_of_time:
        raise EngineError(
            f"finishing {store.uri}: {counts.left} of {counts.listed} recordings are neither done "
            "nor failed, expected none; run again to do them"
        )
    return RunSummary(
        output_uri=store.uri,
        run_id=begun.run_id,
        files=counts.listed,
        done=counts.ok + counts.no_speech,
        failed=counts.failed,
        no_speech=counts.no_speech,
        left=counts.left,
        segments=counts.segments,
        audio_s=counts.audio_s,
        processed_files=plan.num_remaining,
        processed_audio_s=committed.audio_s,
        wall_s=time.monotonic() - started,
        made="labels" if config.pipeline == CLASSIFY_AUDIO else "segments",
    )


def _work_here(
    config: RunConfig,
    store: OutputStore,
    plan: Plan,
    committer: Committer,
    engine_factory: EngineFactory,
    stream: Stream | None,
    stop_at: float | None,
) -> Progress:
    resources = resolve_resources(config, (this_machine(),), num_packs=plan.num_packs)
    with _told(store, committer.run_id, resources, plan, stream) as progress:
        run_local(
            config,
            read_packs(store, plan),
            committer,
            resources=resources,
            progress=progress,
            engine_factory=engine_factory,
            stop_at=stop_at,
        )
    return progress


def _work_on_ray(
    config: RunConfig,
    store: OutputStore,
    plan: Plan,
    committer: Committer,
    engine_factory: EngineFactory,
    stream: Stream | None,
    stop_at: float | None,
) -> Progress:
    # Ray takes seconds to import, and local runs do without it.
    from corpus_asr.runtime.cluster import connected, local_machine
    from corpus_asr.runtime.dataset import run_on_ray

    with connected(
        config.cluster.address, store_bytes=store_bytes_for(config, local_machine())
    ) as cluster:
        resources = resolve_resources(
            config,
            cluster.nodes,
            num_packs=plan.num_packs,
            store_bytes=cluster.store_bytes,
            fixed=config.cluster.address == "local",
        )
        with _told(store, committer.run_id, resources, plan, stream) as progress:
            run_on_ray(
                config,
                plan.uri,
                committer,
                resources=resources,
                progress=progress,
                engine_factory=engine_factory,
                stop_at=stop_at,
            )
    return progress


@contextmanager
def _told(
    store: OutputStore, run_id: str, resources: Resources, plan: Plan, stream: Stream | None
) -> Iterator[Progress]:
    """Say what the run will use, and how far it is while the context is open."""
    if stream is not None:
        stream.write(resources.describe() + "\n")
    progress = Progress(
        total_files=plan.num_remaining, total_bytes=plan.num_remaining_bytes, stream=stream
    )
    with progress, Recorder(store, progress, run_id=run_id, plan=plan, resources=resources):
        yield progress
