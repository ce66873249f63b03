"""Portions: batches of complete recordings, stored in few objects, as work for one task.

Input: a table of requested recordings in the run tables. Output: portions that any node can
process; independent of the processing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corpus_asr.storage.run_state.run_tables import RunTables

RECORDINGS_PER_PORTION = 1_000  # speaker clustering takes a core a minute, texts a few seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Complete recordings as work for one task."""

    recordings: Mapping[str, tuple[str, int]]
    """Source key (`made_of`) and number of parts of each recording, by ID."""
    rows: Mapping[str, Sequence[int]]
    """Row numbers of the parts, by object name."""
    earlier: Sequence[str] = ()
    """Objects with earlier results of these recordings, if requested."""
    named: Mapping[str, int] = field(default_factory=dict)
    """Highest speaker number that people named in each recording, if requested."""
    numbers: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """Numbers of speakers from the manifest, if requested."""


@dataclass(frozen=True, slots=True)
class LostPortion:
    """A portion during which the worker process, or its machine, died."""

    portion: Any
    error: Exception


_PLACES = """
select recording_id, made_of, wanted.parts as parts,
  list({{name: name, row: row}} order by id) as places
from parts join objects using (object) join {wanted} as wanted using (recording_id)
group by all order by min(id)
"""


def portions_of(tables: RunTables, wanted: str, *, at_once: int | None = None) -> Iterator[Portion]:
    """Yield portions of a table that has `recording_id`, `made_of` and `parts`."""
    batches = tables.batches(_PLACES.format(wanted=wanted), rows=at_once or RECORDINGS_PER_PORTION)
    return (_portion(batch.to_pylist()) for batch in batches)


def _portion(batch: Sequence[Mapping[str, Any]]) -> Portion:
    rows: dict[str, list[int]] = {}
    for recording in batch:
        for place in recording["places"]:
            rows.setdefault(place["name"], []).append(place["row"])
    recordings = {
        recording["recording_id"]: (recording["made_of"], recording["parts"]) for recording in batch
    }
    return Portion(recordings=recordings, rows=rows)
