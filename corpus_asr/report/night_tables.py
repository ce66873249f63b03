"""What a night found, from the tables of its output folder.

In: an output folder and the identity of a run. Out: `Findings`. Only the night's own rows are held.
Knows nothing of how nights are judged or shown.
"""

from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.report.balance import EXAMPLES
from corpus_asr.report.night import Findings, Unsure
from corpus_asr.report.statistics import FailureExample, FailureGroup, LanguageShare
from corpus_asr.storage.run_state.run_files import read_snapshot
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore

MOST_LANGUAGES = 10
MOST_UNSURE = 10
_RECORDING_COLUMNS = (
    "run_id", "recording_id", "uri", "status", "error_stage", "error_kind", "error_message",
    "retryable", "duration_s", "segments", "languages",
)  # fmt: skip
_SEGMENT_COLUMNS = ("run_id", "recording_id", "start_s", "end_s", "confidence")


def findings_of(store: OutputStore, run_id: str, *, low_confidence: float) -> Findings:
    """Return what a finished run found.

    Args:
        store: the output folder.
        run_id: the run.
        low_confidence: recordings below it are named.

    Raises:
        FetchError: the store does not answer.
    """
    rows = [
        row
        for batch in store.recordings(_RECORDING_COLUMNS)
        for row in batch.filter(pc.equal(batch["run_id"], run_id)).to_pylist()
    ]
    statuses = Counter(row["status"] for row in rows)
    unsure = _unsure(store, run_id, rows, low_confidence)
    return Findings(
        done=statuses["ok"] + statuses["no_speech"],
        no_speech=statuses["no_speech"],
        failed=statuses["failed"],
        failures=_failures([row for row in rows if row["status"] == "failed"]),
        languages=_languages(rows),
        unsure=len(unsure),
        least_sure=tuple(unsure[:MOST_UNSURE]),
    )


def findings_so_far(store: OutputStore, run_id: str) -> tuple[Findings, float]:
    """Return what a run that did not come to its end had counted, and the audio it committed.

    Raises:
        FetchError: the store does not answer.
    """
    seen = read_snapshot(store)
    if seen is None or seen.run_id != run_id:
        return Findings(), 0.0
    failed = min(seen.failed, seen.files)
    groups = (
        FailureGroup(
            stage=one.stage,
            kind=one.kind,
            recordings=one.count,
            retryable=one.retryable,
            examples=tuple(FailureExample(uri=uri, message="") for uri in one.examples),
        )
        for one in seen.failures
    )
    found = Findings(done=seen.files - failed, failed=failed, failures=tuple(groups))
    return found, seen.audio_s


def _failures(failed: list[dict[str, Any]]) -> tuple[FailureGroup, ...]:
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in failed:
        kinds[row["error_stage"] or "unknown", row["error_kind"] or "unknown"].append(row)
    groups = []
    for (stage, kind), rows in kinds.items():
        rows.sort(key=lambda row: str(row["uri"]))
        examples = (
            FailureExample(uri=row["uri"], message=row["error_message"] or "")
            for row in rows[:EXAMPLES]
        )
        groups.append(
            FailureGroup(
                stage=stage,
                kind=kind,
                recordings=len(rows),
                retryable=any(row["retryable"] for row in rows),
                examples=tuple(examples),
            )
        )
    return tuple(sorted(groups, key=lambda group: (-group.recordings, group.stage, group.kind)))


def _languages(rows: list[dict[str, Any]]) -> tuple[LanguageShare, ...]:
    """Count recordings by the language most of their parts are in."""
    spoken: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["languages"]:
            spoken[row["languages"][0]].append(row)
    shares = [
        LanguageShare(
            language=language,
            recordings=len(found),
            audio_s=sum(row["duration_s"] for row in found),
            segments=sum(row["segments"] for row in found),
        )
        for language, found in spoken.items()
    ]
    shares.sort(key=lambda share: (-share.audio_s, share.language))
    return tuple(shares[:MOST_LANGUAGES])


def _unsure(
    store: OutputStore, run_id: str, rows: list[dict[str, Any]], low_confidence: float
) -> list[Unsure]:
    """Return the recordings below, by the mean of their segments over time, least sure first."""
    means = _confidences(store, run_id)
    found = [
        Unsure(uri=row["uri"], confidence=means[row["recording_id"]], audio_s=row["duration_s"])
        for row in rows
        if row["status"] == "ok" and means.get(row["recording_id"], 1.0) < low_confidence
    ]
    return sorted(found, key=lambda one: (one.confidence, one.uri))


def _confidences(store: OutputStore, run_id: str) -> dict[str, float]:
    weighted = [_WEIGHTED.empty_table()]
    for batch in store.segments(_SEGMENT_COLUMNS, _commits_of(store, run_id)):
        ours = batch.filter(pc.equal(batch["run_id"], run_id))
        seconds = pc.subtract(ours["end_s"], ours["start_s"])
        weights = pc.add(seconds, 1e-3)  # a segment may have no length
        sure = pc.multiply(pc.cast(ours["confidence"], pa.float64()), weights)
        columns = [ours["recording_id"], weights, sure]
        weighted.append(pa.table(columns, schema=_WEIGHTED).drop_null())
    sums = pa.concat_tables(weighted).group_by("recording_id", use_threads=False)
    added = sums.aggregate([("sure", "sum"), ("weight", "sum")]).to_pylist()
    return {row["recording_id"]: row["sure_sum"] / row["weight_sum"] for row in added}


_WEIGHTED = pa.schema(
    [("recording_id", pa.string()), ("weight", pa.float64()), ("sure", pa.float64())]
)


def _commits_of(store: OutputStore, run_id: str) -> list[str]:
    """Return the outcomes objects that hold rows of a run: the others need not be opened again."""
    found: dict[str, None] = {}
    for batch in store.committed(["run_id"], store.names(OUTCOMES_FOLDER)):
        if pc.any(pc.equal(batch.rows["run_id"], run_id)).as_py():
            found[batch.name] = None
    return list(found)
