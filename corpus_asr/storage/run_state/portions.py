"""Recordings in portions: some that lie in few objects, with all their parts, for one task.

In: a table of the recordings that are wanted, in the run tables. Out: portions, which any node can
be given; what is done with them is not known here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corpus_asr.storage.run_state.run_tables import RunTables

RECORDINGS_PER_PORTION = 1_000  # their speakers take a core a minute, their texts a few seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Some recordings, with all their parts: work for one task."""

    recordings: Mapping[str, tuple[str, int]]
    """What the result of a recording is made of, and how many parts it has, by ID."""
    rows: Mapping[str, Sequence[int]]
    """Where the parts lie: rows, by name of their object."""
    earlier: Sequence[str] = ()
    """Objects that hold what was made of these recordings before, as far as it is asked for."""
    named: Mapping[str, int] = field(default_factory=dict)
    """The highest number of a speaker that people named in them, as far as it is asked for."""
    numbers: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """Numbers of speakers of their rows of the manifest, as far as they are asked for."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A portion with which a worker's process, or its machine, ended."""

    portion: Any
    error: Exception


_PLACES = """
select recording_id, made_of, wanted.parts as parts,
  list({{name: name, row: row}} order by id) as places
from parts join objects using (object) join {wanted} as wanted using (recording_id)
group by all order by min(id)
"""


def portions_of(tables: RunTables, wanted: str, *, at_once: int | None = None) -> Iterator[Portion]:
    """Yield the recordings of a table, which has `recording_id`, `made_of` and `parts`."""
    found = tables.batches(_PLACES.format(wanted=wanted), rows=at_once or RECORDINGS_PER_PORTION)
    return (_portion(batch.to_pylist()) for batch in found)


def _portion(found: Sequence[Mapping[str, Any]]) -> Portion:
    rows: dict[str, list[int]] = {}
    for each in found:
        for place in each["places"]:
            rows.setdefault(place["name"], []).append(place["row"])
    recordings = {each["recording_id"]: (each["made_of"], each["parts"]) for each in found}
    return Portion(recordings=recordings, rows=rows)
