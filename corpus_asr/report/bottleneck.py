"""Where the time of a run went, what held it up, and which setting would move that.

In: what the workers counted. Out: a verdict, and lines of text. Pure functions: the thresholds are
rules of thumb, so the shares they are applied to are always shown beside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from corpus_asr.activity import Activity
from corpus_asr.report.text import counted, duration, row, wrapped
from corpus_asr.storage.run_state.run_files import RUNNING, Snapshot

# A stage that is at work for this share of its time is what the others wait for.
BUSY = 0.75
# Less than this of extraction is computing: the rest of its time is the store's.
COMPUTING = 0.5
# Slots that are emptier than this while the engine works waste what a step costs.
FULL = 0.6
# Loading that took more than this of a run says nothing about the rest of it.
SHORT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What held a run up."""

    stage: str
    """`loading`, `transcription`, `slots`, `extraction`, `store`, `commits` or `nothing`."""
    why: str
    advice: str


def bottleneck(found: Activity, *, elapsed_s: float, transcribe_workers: int) -> Verdict | None:
    """Say what held a run up; None where too little was counted."""
    if not found.steps and not found.parts_extracted:
        return None
    workers = max(1, transcribe_workers)
    if found.load_s / workers > SHORT * elapsed_s:
        return Verdict(
            stage="loading",
            why=f"loading the model took {duration(found.load_s / workers)} of "
            f"{duration(elapsed_s)}",
            advice="nothing: a longer run spreads this over more audio",
        )
    if (share := found.engine_share) is not None and share >= BUSY:
        return _transcription(found, share)
    if (share := found.extract_share) is not None and share >= BUSY:
        return _extraction(found, share)
    if elapsed_s > 0 and found.commit_s / elapsed_s >= BUSY:
        return Verdict(
            stage="commits",
            why=f"a commit takes {duration(found.commit_s / max(1, found.commits))}",
            advice="an output.uri nearer to the workers; check what the store does with small puts",
        )
    return Verdict(
        stage="nothing",
        why="no stage was at work most of the time",
        advice="longer runs; where recordings are few, a smaller extract.part_s or "
        "extract.pack_mb spreads them over more workers",
    )


def _transcription(found: Activity, share: float) -> Verdict:
    why = f"the engines were at work {share:.0%} of the time"
    full = found.occupancy
    if full is not None and full < FULL and found.parts_ready == 0:
        return Verdict(
            stage="slots",
            why=f"{why}, with only {full:.0%} of their slots in use",
            advice="more parts at once: more extract.workers or a smaller extract.part_s; for few "
            "recordings fewer transcribe.slots cost nothing",
        )
    advice = "more GPUs (transcribe.workers), a smaller model.checkpoint, or another model.dtype"
    if found.halvings:
        advice += (
            f"; memory did not suffice {counted(found.halvings, 'time')}, so that slots were halved"
        )
    return Verdict(stage="transcription", why=why, advice=advice)


def _extraction(found: Activity, share: float) -> Verdict:
    why = f"extraction was at work {share:.0%} of the time while the engines waited"
    computing = found.extract_cpu_share
    if computing is not None and computing < COMPUTING:
        return Verdict(
            stage="store",
            why=f"{why}, and {1 - computing:.0%} of that was waiting, mostly for the store",
            advice="more extract.workers, since they wait more than they compute; workers nearer "
            "to the store",
        )
    return Verdict(
        stage="extraction",
        why=why,
        advice="more extract.workers where cores are free, more CPU machines where they are not",
    )


def time_lines(seen: Snapshot) -> Iterator[str]:
    """Yield where the time went, what waited for what, and the verdict."""
    found = seen.activity
    if found.extract_share is not None:
        yield from wrapped(extract_words(found, seen.extract_workers), label="extract")
    if found.engine_share is not None:
        yield from wrapped(engine_words(found, seen.transcribe_workers), label="engine")
    if found.commits:
        mean = duration(found.commit_s / found.commits)
        yield row("commits", f"{counted(found.commits, 'commit')} of {mean} each")
    if repeated := repeated_words(seen):
        yield row("repeated", ", ".join(repeated))
    if seen.state == RUNNING:
        yield row(
            "queues",
            f"{counted(found.parts_ready, 'part')} before the engines, "
            f"{found.parts_in_engines:,} in them, {seen.parts_uncommitted:,} behind them",
        )
    verdict = bottleneck(
        found, elapsed_s=seen.elapsed_s, transcribe_workers=seen.transcribe_workers
    )
    if verdict is not None:
        text = f"{verdict.stage}: {verdict.why}. What would move it: {verdict.advice}."
        yield from wrapped(text, label="bottleneck")


def extract_words(found: Activity, workers: int) -> str:
    """Say what the extract workers did with their time."""
    working, waiting = found.extract_share or 0.0, found.hand_over_share or 0.0
    words = f"{working:.0%} of the time at work"
    if (computing := found.extract_cpu_share) is not None:
        words += f" ({computing:.0%} of it computing)"
    idle = max(0.0, 1 - working - waiting)
    words += f", {waiting:.0%} handing over, {idle:.0%} without work"
    return f"{words}; {counted(workers, 'worker')}"


def engine_words(found: Activity, workers: int) -> str:
    """Say what the engines did with theirs."""
    stages = {
        "encoding": found.encode_s,
        "steps": found.step_s,
        "prompts": found.fill_s + found.prefill_s,
        "reading results": found.wait_s,
    }
    whole = found.engine_s or 1.0
    shares = ", ".join(f"{name} {spent / whole:.0%}" for name, spent in stages.items())
    words = f"{found.engine_share or 0.0:.0%} of the time at work ({shares})"
    if found.occupancy is not None:
        words += f"; {found.occupancy:.0%} of {counted(found.slots, 'slot')} in use"
    if found.load_s:
        words += f"; model loaded in {duration(found.load_s / max(1, workers))}"
    words += f"; {counted(found.windows, 'window')}, {counted(found.tokens, 'token')}"
    return f"{words}; {counted(workers, 'worker')}"


def repeated_words(seen: Snapshot) -> list[str]:
    """Say what had to be done more than once; nothing where all went well."""
    found = seen.activity
    told = []
    if requests := found.fetch_retries + found.commit_retries:
        told.append(counted(requests, "request") + " to stores")
    if seen.parts_retried:
        told.append(counted(seen.parts_retried, "part") + " after their worker died")
    if found.workers_replaced:
        told.append(f"{counted(found.workers_replaced, 'worker')} replaced")
    return told
