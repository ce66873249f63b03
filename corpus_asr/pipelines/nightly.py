"""A job over an archive every night, within its time and budget of failures, with a summary.

It is the ordinary run of the job, so nights and other runs may take turns on one output folder.
"""

import datetime
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.activity import rtfx
from corpus_asr.config.run import PSEUDO_LABEL, Retry, RunConfig, RunOptions
from corpus_asr.errors import ConfigError, LockedError
from corpus_asr.logs import event
from corpus_asr.pipelines.driver import CorpusRun, RunSummary, check_places, prepare
from corpus_asr.report.nightly import (
    Archive,
    Night,
    NightState,
    findings_of,
    findings_so_far,
    over_limit,
    past_nights,
    tell,
    warnings_of,
)
from corpus_asr.report.numbers import RunNumbers
from corpus_asr.report.page import write_page_at_the_end
from corpus_asr.report.run import run_entry, write_entry
from corpus_asr.runtime.shutdown import RunStoppedError
from corpus_asr.runtime.terminal import line_writer
from corpus_asr.storage.run_state.lock import USUAL, Lock, Timing
from corpus_asr.storage.run_state.plan import Plan
from corpus_asr.storage.run_state.rewriting import FAILING_NAME
from corpus_asr.storage.run_state.run_files import SUMMARIES_FOLDER, new_run_id
from corpus_asr.storage.run_state.run_tables import FAILED, VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

_LOG = logging.getLogger(__name__)
_FAILING = pa.schema([
    ("recording_id", pa.string()), ("uri", pa.string()), ("etag", pa.string()),
    ("size_bytes", pa.int64()), ("run_id", pa.string()), ("tries", pa.int32()),
])  # fmt: skip
# Identities of runs sort by the time that they began. Tries are runs that failed on this content.
_LATEST = """
with latest as (
  select recording_id, uri, outcomes.etag, outcomes.size_bytes, run_id
  from outcomes join row_states using (id) join part_rows using (id, recording_id)
  where origin = 'program' and failed and (counts or failing)
  qualify row_number() over (partition by recording_id order by run_id desc, id desc) = 1)
select latest.*,
  if(tried.etag is not distinct from latest.etag
       and tried.size_bytes is not distinct from latest.size_bytes,
     coalesce(tries, 0) + (tried.run_id is distinct from latest.run_id)::int, 1)::int as tries
from latest left join tried using (recording_id) order by uri
"""
# What is planned, but for recordings of which some parts were done.
_PLANNED = ("new", "changed", "retried", "redone")
_MOST_GIVEN_UP = 10  # named in a message that people read; the tables hold all of them


def run(
    config: RunConfig,
    *,
    local: bool,
    progress: TextIO | None,
    show: Callable[[Night], object] = lambda night: None,
    timing: Timing = USUAL,
) -> Night:
    """Process the remaining recordings within the time limit, and report the run.

    `show` is called with the run after it was reported, even if it was aborted.

    Raises:
        LockedError: another run holds the output folder; nothing was done or reported.
        CorpusAsrError: a link leads the summaries out of it; nothing was done or reported.
        CorpusAsrError: raised by `driver.run`, after it was reported.
    """
    if config.pipeline == PSEUDO_LABEL:
        raise ConfigError(
            f"running nightly {config.pipeline}: expected transcribe_corpus or classify_audio; "
            "use `corpus-asr run` for this job"
        )
    check_places(config)
    store = OutputStore.of(config.output)
    attempt = _NightlyRun(config=config, store=store, summaries=_summaries(config, store))
    say = line_writer(progress)
    try:
        # The lock of a nightly run that died must not block later ones.
        with Lock(store, attempt.run_id, steal=True, say=say, timing=timing) as lock:
            attempt.work(lock, local=local, progress=progress)
            night = attempt.night(None)
    except LockedError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        show(attempt.night(error))
        raise
    show(night)
    return night


def _summaries(config: RunConfig, store: OutputStore) -> OutputStore:
    # Only a folder that the job names may be elsewhere: another may be a link in a foreign folder.
    if not config.nightly.summaries:
        return store.below(SUMMARIES_FOLDER)
    return OutputStore(config.nightly.summaries, options=store.options)


@dataclass(slots=True, kw_only=True)
class _NightlyRun:
    """A night as far as it came."""

    config: RunConfig
    store: OutputStore
    summaries: OutputStore
    run_id: str = field(default_factory=new_run_id)
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now().astimezone())
    begun_s: float = field(default_factory=time.monotonic)
    alone: frozenset[str] = frozenset()
    """Recordings that failed too often before this night."""
    plan: Plan | None = None
    summary: RunSummary | None = None

    def work(self, lock: Lock, *, local: bool, progress: TextIO | None) -> None:
        """Process the remaining recordings, except those that failed too often."""
        config = self.config
        failing = count_tries(lock.store)
        lock.store.write_table(FAILING_NAME, failing)
        self.alone = frozenset(self._spent(failing)["recording_id"].to_pylist())
        hours = config.nightly.stop_after_h
        run = CorpusRun(
            config=config,
            checkpoint=prepare(config),
            lock=lock,
            local=local,
            progress=progress,
            after_finish=functools.partial(
                write_page_at_the_end, audio_options=config.source.bound_options
            ),
            options=RunOptions(
                retry=Retry.nightly,
                leave_alone=self.alone,
                stop_at=None if hours is None else self.begun_s + 3600 * hours,
            ),
        )
        self.plan = run.start()
        run.process()
        self.summary = run.finish()

    def _spent(self, failing: pa.Table) -> pa.Table:
        return failing.filter(pc.field("tries") > self.config.nightly.retry_nights)

    def night(self, error: BaseException | None) -> Night:
        night = self._night(error)
        try:
            night = self._with_findings(night)
            past = past_nights(self.store)
            limit = self.config.output.max_failed_fraction
            night = replace(night, past=past, over_limit=over_limit(night, limit))
            night = replace(night, warnings=warnings_of(night, past))
            finished_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            entry = run_entry(self.store, self.run_id, finished_at=finished_at)
            write_entry(self.store, replace(entry, night=night.numbers))
        except Exception as failure:
            if error is None:
                raise
            # The run was aborted, perhaps with its store: known numbers are still reported.
            event(_LOG, logging.WARNING, "night_not_counted", error=str(failure))
        return tell(
            night,
            self.summaries,
            webhook_env=self.config.nightly.webhook_env,
            allow_hosts=self.config.source.allow_hosts,
        )

    def _night(self, error: BaseException | None) -> Night:
        """Return the known numbers without reading anything."""
        plan, summary = self.plan, self.summary
        wall_s = time.monotonic() - self.begun_s
        audio_s = summary.speed.audio_s if summary else 0.0
        num_remaining = summary.remaining if summary else plan.num_remaining if plan else 0
        kinds: dict[str, Any] = {
            name: getattr(plan, f"num_{name}") if plan else 0 for name in _PLANNED
        }
        return Night(
            date=self.started.date().isoformat(),
            output=redact_uri(self.store.uri),
            run_id=self.run_id,
            state=_state(num_remaining, error),
            error=None if error is None else _words(error),
            started_at=self.started.isoformat(timespec="seconds"),
            ended_at=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            wall_s=wall_s,
            listed=plan.num_files if plan else 0,
            **kinds,
            continued=plan.num_remaining - sum(kinds.values()) if plan else 0,
            moved=plan.num_moved if plan else 0,
            erased=plan.num_forgotten if plan else 0,
            hooks={name: asdict(counts) for name, counts in summary.hooks.items()}
            if summary
            else {},
            remaining=num_remaining,
            audio_s=audio_s,
            rtfx=rtfx(audio_s, wall_s),
            findings=RunNumbers(),
            archive=None
            if summary is None
            else Archive(**{name: getattr(summary, name) for name in Archive.__slots__}),
            skipped=len(self.alone),
            no_longer_retried=(),
        )

    def _with_findings(self, night: Night) -> Night:
        if self.summary is not None:
            night = replace(night, findings=findings_of(self.store, self.run_id))
        else:
            findings = findings_so_far(self.store, self.run_id)
            night = replace(
                night,
                findings=findings,
                remaining=max(0, night.remaining - findings.done - findings.failed),
                audio_s=findings.audio_s,
                rtfx=rtfx(findings.audio_s, night.wall_s),
            )
        # Counted again: tonight's failures may have been a recording's last try.
        spent = self._spent(count_tries(self.store))
        was_alone = pc.is_in(spent["recording_id"], value_set=pa.array(self.alone, pa.string()))
        given_up = spent.filter(pc.invert(was_alone))["uri"].to_pylist()
        return replace(
            night, skipped=len(spent), no_longer_retried=tuple(given_up[:_MOST_GIVEN_UP])
        )


def _state(left: int, error: BaseException | None) -> NightState:
    if error is None:
        return NightState.time_limit if left else NightState.done
    return NightState.stopped if isinstance(error, KeyboardInterrupt) else NightState.aborted


def _words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, RunStoppedError):
        return "interrupted"
    return str(error) or type(error).__name__


def count_tries(store: OutputStore) -> pa.Table:
    """Return the recordings that this version fails on, by URI, with their numbers of tries.

    `FAILING_NAME` holds the earlier counts.
    """
    noted = _FAILING.empty_table()
    if store.exists(FAILING_NAME):
        noted = store.read_table(FAILING_NAME, _FAILING)
    with RunTables(store, columns=(*VERSION_COLUMNS, "uri"), opened=FAILED) as tables:
        tables.add("tried", noted)
        return tables.table(_LATEST).cast(_FAILING)
