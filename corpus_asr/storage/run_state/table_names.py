"""Names of what an output folder holds, and which of its tables count.

A commit is one object below `COMMITS_FOLDER`, an object of a table one of the same stem in each
folder that it belongs to. Stems sort by time, and name the run that put them.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import pyarrow as pa

from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.json_values import load
from corpus_asr.schemas import LABELS, SEGMENTS
from corpus_asr.storage.stores.uri import redact_uri

OUTCOMES_FOLDER, RECORDINGS_FOLDER = "outcomes", "recordings"
SPEAKERS_FOLDER, VOICES_FOLDER, DUPLICATES_FOLDER = "speakers", "voices", "duplicates"
HOOKS_FOLDER = "hooks"  # with a folder for the table of each
COMMITS_FOLDER: Final = "_run/commits"
"""Commits since the last finish, and parts that wait until all of their version are there."""
SUFFIX = ".parquet"
INTERNAL_SUFFIX = ".rows"  # so that **/*.parquet finds only tables for users


def table_name(folder: str, stem: str) -> str:
    """Return the name of a table's object; below `_run/` it has a suffix of its own."""
    is_internal = folder.partition("/")[0] == "_run"
    return f"{folder}/{stem}{INTERNAL_SUFFIX if is_internal else SUFFIX}"


def is_commit(name: str) -> bool:
    """Tell whether an object is a commit; else it is one of the table of outcomes."""
    return name.startswith(f"{COMMITS_FOLDER}/")


def beside(name: str, folder: str) -> str:
    """Return the name of the object in another folder that belongs to one of outcomes."""
    return f"{folder}/{name.rpartition('/')[2]}"


@dataclass(frozen=True, slots=True)
class PartRows:
    """A table whose rows belong to parts, written together with their outcomes."""

    folder: str  # below the output folder; also the column of RESULTS that holds a part's rows
    schema: pa.Schema


SEGMENT_ROWS = PartRows("segments", SEGMENTS)
LABEL_ROWS = PartRows("labels", LABELS)
PART_ROWS = (SEGMENT_ROWS, LABEL_ROWS)
PART_ROWS_FOLDERS = tuple(rows.folder for rows in PART_ROWS)


TABLES_NAME: Final = "_run/tables.json"
IDENTITIES_NAME: Final = table_name("_run", "identities")
"""Addresses of recordings that moved (`identities`)."""
PLANS_FOLDER: Final = "_run/plan"
FINISHED_FOLDERS = (OUTCOMES_FOLDER, *PART_ROWS_FOLDERS, RECORDINGS_FOLDER)
"""Tables of which those objects count that `TABLES_NAME` names."""
DERIVED_FOLDERS = (SPEAKERS_FOLDER, VOICES_FOLDER, DUPLICATES_FOLDER, HOOKS_FOLDER)
"""Tables that are made of these, of which all objects count; `TABLES_NAME` says which there were.
"""
TABLES_OF_RUNS = (COMMITS_FOLDER, *FINISHED_FOLDERS, *DERIVED_FOLDERS)
OF_PARTS = (OUTCOMES_FOLDER, *PART_ROWS_FOLDERS)
RUN_NAME: Final = "run.json"
OWN_FOLDERS = ("_run", *FINISHED_FOLDERS)
"""Folders of which a command knows all objects while it holds the lock."""
OWN_PREFIXES = tuple(f"{folder}/" for folder in OWN_FOLDERS)
_REMOVE = "restore it, or remove it to count all tables of the folder"
RUNS_PREFIXES = tuple(f"{folder}/" for folder in TABLES_OF_RUNS)
_NOTED = {"tables", "merged", "closed_runs", "settled"}
_TIME_DIGITS = 20


class TableSize(NamedTuple):
    """Rows and bytes of an object; None where unknown."""

    rows: int | None = None
    bytes: int | None = None


class Manifest(NamedTuple):
    """What `TABLES_NAME` says of the objects of an output folder."""

    content: bytes | None = None
    tables: Mapping[str, TableSize] = MappingProxyType({})
    merged: frozenset[str] = frozenset()
    """Commits whose rows these hold, so that they do not count any more."""
    closed_runs: Mapping[str, frozenset[str]] = MappingProxyType({})
    """Runs whose lock was taken over, each with what it had put until then."""
    settled: bool = False
    """Whether a finish has left each part once, and a row in recordings for all that is whole."""

    @classmethod
    def decoded(cls, content: bytes, uri: str) -> "Manifest":
        """Return what the object at an address says.

        Raises:
            ConfigError: it is of another version of this program.
            CorpusAsrError: it is damaged.
        """
        try:
            noted = load(content)
            if isinstance(noted, list) or not noted.keys() >= _NOTED:
                raise ConfigError(
                    f"reading {redact_uri(uri)}: found results of another version of corpus-asr, "
                    "which this one does not read; use that version, or transcribe into another "
                    "folder"
                )
            tables = {name: TableSize(**size) for name, size in noted["tables"].items()}
            closed = {run_id: frozenset(put) for run_id, put in noted["closed_runs"].items()}
            return cls(content, tables, frozenset(noted["merged"]), closed, bool(noted["settled"]))
        except (ValueError, TypeError, AttributeError) as error:
            raise CorpusAsrError(
                f"reading {redact_uri(uri)}: found it damaged ({error!r}); {_REMOVE}"
            ) from error

    def is_late(self, name: str) -> bool:
        """Tell whether a run put an object after its lock was taken over."""
        return any(is_by(run_id, name) and name not in put
                   for run_id, put in self.closed_runs.items())  # fmt: skip

    def counting(self, listed: Mapping[str, TableSize]) -> dict[str, TableSize]:
        """Return those of listed objects that are tables or commits that count."""
        return {
            name: size for name, size in listed.items()
            if is_table(name) and name not in self.merged and not self.is_late(name)
        }  # fmt: skip

    def within(self, folder: str) -> dict[str, TableSize]:
        """Return the objects of a folder that it names."""
        return {name: size for name, size in self.tables.items() if name.startswith(f"{folder}/")}

    def encoded(self) -> bytes:
        """Return the content of the object."""
        value = {
            "tables": {name: self.tables[name]._asdict() for name in sorted(self.tables)},
            "merged": sorted(self.merged),
            "closed_runs": {run_id: sorted(put) for run_id, put in self.closed_runs.items()},
            "settled": self.settled,
        }
        return (json.dumps(value, indent=2) + "\n").encode()


def is_table(name: str) -> bool:
    """Tell whether an object holds rows, by its name."""
    return name.endswith((SUFFIX, INTERNAL_SUFFIX))


def repair_advice(name: str, *, is_lost: bool = False) -> str:
    """Return what to do about a table that is lost or damaged."""
    if not name.startswith(RUNS_PREFIXES):
        return "restore it, or remove it"
    objects = [*([] if is_lost else [name]), TABLES_NAME]
    if name.partition("/")[0] in PART_ROWS_FOLDERS:
        objects.insert(0, beside(name, OUTCOMES_FOLDER))
    return f"restore it, or remove {' and '.join(objects)}, and run the job again"


def unique_stem(time_ns: int | None = None, *, run_id: str | None = None, mark: str = "") -> str:
    """Return a unique commit name; names sort by `time_ns`, by default the present time."""
    by = "" if run_id is None else f"{run_id}-"
    time_ns = time.time_ns() if time_ns is None else time_ns
    return f"{time_ns:0{_TIME_DIGITS}d}-{by}{mark or uuid.uuid4().hex[:12]}"


def time_ns_of(name: str) -> int:
    """Return the time in a name, in nanoseconds; 0 for names of another form."""
    time_ns = name.rpartition("/")[2].partition("-")[0]
    return int(time_ns) if time_ns.isdecimal() and len(time_ns) == _TIME_DIGITS else 0


def is_by(run_id: str, name: str) -> bool:
    """Tell whether a run has put an object, by its name."""
    return name.rpartition("/")[2].partition("-")[2].startswith(f"{run_id}-")
