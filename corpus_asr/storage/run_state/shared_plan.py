"""A plan that several drivers work off, each of them a shard, in one output folder.

The first driver makes the plan under the folder's lock and notes it in `SHARDS_NAME`. Each takes
every N-th pack of it and commits under its shard's lock. What it notes of itself, its packs,
progress and end, lies below the plan's folder. Whoever finds all shards done finishes, and removes
the note first: without it what else is left means nothing.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow.compute as pc

from corpus_asr.activity import Activity, Estimate, merged, rtfx
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.schemas import PACKS
from corpus_asr.storage.run_state.lock import SHARDS_NAME, Holder, Shard, read_holder
from corpus_asr.storage.run_state.plan import Plan, shards_folder
from corpus_asr.storage.run_state.run_files import (
    FINGERPRINT_NAME,
    RUNNING,
    TRANSCRIBED,
    Run,
    Snapshot,
    changed_settings,
    read_snapshot,
    safe_config,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """What is known of a shard from outside."""

    shard: Shard
    files: int
    """Recordings that it has to do."""
    files_left: int
    holder: Holder | None
    """Its driver; None where none is at work."""
    snapshot: Snapshot | None

    @property
    def done(self) -> bool:
        """Whether nothing is left; its driver may be gone."""
        return not self.files_left

    @property
    def at_work(self) -> bool:
        """Whether a driver has it that is not known to be dead."""
        return self.holder is not None and not self.holder.process.is_surely_dead()


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPlan:
    """What the first driver notes for the others."""

    of: int
    fingerprint: str
    """Of its settings."""
    source: dict[str, Any]
    run: Run
    plan: Plan
    files: tuple[int, ...]
    """Recordings of each shard."""

    @classmethod
    def note(
        cls,
        store: OutputStore,
        config: RunConfig,
        plan: Plan,
        run: Run,
        *,
        fingerprint: str,
        of: int,
    ) -> Self:
        """Share a plan, now that everything else of its run has begun."""
        files = np.zeros(of, np.int64)
        for name in plan.pack_names:
            packs = store.read_table(name, PACKS)
            sizes = pc.fill_null(pc.list_value_length(packs["files"]), 0)
            np.add.at(files, packs["pack_id"].to_numpy() % of, sizes.to_numpy())
        source = safe_config(config)["source"]
        noted = {
            "of": of, "fingerprint": fingerprint, "source": source, "run": asdict(run),
            "plan": plan.as_data(), "files": files.tolist(),
        }  # fmt: skip
        store.write_json(SHARDS_NAME, noted)
        return cls._of(noted)

    @classmethod
    def read(cls, store: OutputStore) -> Self | None:
        """Return the plan that is shared in an output folder now, if one is."""
        noted = store.read_json(SHARDS_NAME)
        return None if noted is None else cls._of(noted)

    @classmethod
    def _of(cls, noted: dict[str, Any]) -> Self:
        run, plan = Run(**noted["run"]), Plan(**noted["plan"])
        return cls(**noted | {"run": run, "plan": plan, "files": tuple(noted["files"])})

    def check(
        self, store: OutputStore, config: RunConfig, shard: Shard, *, fingerprint: str
    ) -> None:
        """Return if a driver can take this shard.

        Raises:
            ConfigError: the others share the plan in another way, or it is gone.
        """
        joining = f"joining as {shard} in {redact_uri(store.uri)}"
        alone = "once no shard is at work, a run without --shard takes over what they left"
        if shard.of != self.of:
            raise ConfigError(
                f"{joining}: found a plan for {self.of} drivers, expected one for {shard.of}; use "
                f"--shard I/{self.of}, or {alone}"
            )
        if fingerprint != self.fingerprint:
            stored = store.read_json(FINGERPRINT_NAME)
            raise ConfigError(
                f"{', '.join(changed_settings(stored, config, fingerprint))}; {joining}: found a "
                f"plan of the old settings; use these, or {alone}"
            )
        if safe_config(config)["source"] != self.source:
            raise ConfigError(
                f"{joining}: found a plan of another source, expected that of this job; use the "
                f"same source as the first driver, or {alone}"
            )
        # While the last one finishes, packs are removed; the first object stays.
        wanted = self.plan.pack_names[: None if self.ended(store, shard) is None else 1]
        missing = store.missing([*self.plan.listing_names, *wanted])
        if missing:
            raise ConfigError(
                f"{joining}: found its plan without {min(missing)}, expected all that the first "
                f"driver wrote; {alone}, and makes another plan"
            )

    def end(self, store: OutputStore, shard: Shard, **came_to: Any) -> None:
        """Note that a shard is done, and what it came to."""
        store.write_json(self._end_name(shard), came_to)

    def is_done(self, store: OutputStore, shard: Shard) -> bool:
        """Tell whether a shard is done, or has nothing to do."""
        return not self.files[shard.number - 1] or self.ended(store, shard) is not None

    @property
    def shards(self) -> list[Shard]:
        """All of them."""
        return [Shard(number, self.of) for number in range(1, self.of + 1)]

    def states(self, store: OutputStore) -> list[ShardState]:
        """Return how far each shard is."""
        found = []
        for shard, files in zip(self.shards, self.files, strict=True):
            seen = read_snapshot(store, self.progress_name(shard))
            left = files if seen is None else seen.remaining
            # Committed, but not yet noted, is not done.
            left = 0 if self.is_done(store, shard) else max(1, left)
            holder = read_holder(store, shard)
            found.append(
                ShardState(shard=shard, files=files, files_left=left, holder=holder, snapshot=seen)
            )
        return found

    def snapshot(self, states: Iterable[ShardState]) -> Snapshot | None:
        """Add up the progress of shards; None before one began to transcribe."""
        states = list(states)
        seen = [each.snapshot for each in states if each.snapshot is not None]
        if not seen:
            return None
        left = [each for each in states if each.files_left]
        # Nothing is known of those that have not begun.
        etas = [None if each.snapshot is None else each.snapshot.eta for each in left]
        known = [each for each in etas if each is not None]
        eta = max(known, key=lambda each: each.value) if known and None not in etas else None
        audio = None
        expected = [each.audio_expected for each in seen if each.audio_expected is not None]
        if len(expected) == sum(each.files > 0 for each in states):
            audio = Estimate(
                *(
                    sum(getattr(each, name) for each in expected)
                    for name in ("value", "low", "high")
                )
            )
        audio_s, elapsed_s = sum(each.audio_s for each in seen), max(x.elapsed_s for x in seen)
        commits = [each.last_commit_at for each in seen if each.last_commit_at is not None]
        sums = {name: sum(getattr(each, name) for each in seen) for name in _SUMMED}
        return replace(
            max(seen, key=lambda each: each.written_at),
            **sums,
            run_id=self.run.run_id,
            state=RUNNING if left else TRANSCRIBED,
            started_at=self.run.started_at,
            planned=self.plan.num_remaining,
            files=self.plan.num_remaining - sum(each.files_left for each in left),
            planned_bytes=self.plan.num_remaining_bytes,
            elapsed_s=elapsed_s,
            rtfx=rtfx(audio_s, elapsed_s),
            audio_expected_s=None if audio is None else audio.value,
            audio_expected_range_s=None if audio is None else (audio.low, audio.high),
            eta_s=None if eta is None else eta.value,
            eta_range_s=None if eta is None else (eta.low, eta.high),
            last_commit_at=max(commits, default=None),
            failures=merged(failure for each in seen for failure in each.failures),
            workers_out=tuple(worker for each in seen for worker in each.workers_out),
            activity=Activity.total(each.activity for each in seen),
            history=(),
        )

    def remove(self, store: OutputStore) -> None:
        """Forget a plan that is finished."""
        store.remove(SHARDS_NAME)
        store.remove_all(list(store.all_names(shards_folder(self.plan.name))))

    def progress_name(self, shard: Shard) -> str:
        """Return where a shard's snapshot lies."""
        return f"{self.folder(shard)}progress.json"

    def folder(self, shard: Shard) -> str:
        """Return where a shard keeps what is its own."""
        return f"{shards_folder(self.plan.name)}/{shard.number}/"

    def ended(self, store: OutputStore, shard: Shard) -> dict[str, Any] | None:
        """Return what a shard came to; None before its end."""
        ended: dict[str, Any] | None = store.read_json(self._end_name(shard))
        return ended

    def _end_name(self, shard: Shard) -> str:
        return f"{self.folder(shard)}done.json"


_SUMMED = ("failed", "audio_s", "audio_done_s", "parts", "parts_retried", "extract_workers",
           "transcribe_workers")  # fmt: skip


def words_of(shard: Shard, states: Iterable[ShardState]) -> str:
    """Return what there is to say of the others when a shard is done."""
    left = [each for each in states if not each.done and each.shard != shard]
    at_work = ", ".join(str(each.shard.number) for each in left if each.at_work)
    others = ", ".join(str(each.shard.number) for each in left if not each.at_work)
    words = [f"{shard} done"]
    if at_work:
        words.append(f"{at_work} still at work")
    if others:
        words.append(f"{others} to be started")
    return "; ".join(words)
