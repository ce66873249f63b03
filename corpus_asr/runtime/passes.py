"""The passes of a run: what ended workers, what is tried again, in which company, and given up.

A worker leaves for whoever comes after it which call it was in, and why it ended: in files of this
machine, which outlive the process that a part kills, and in rows of the output folder's
`_run/deaths/`. Neither needs the run's coordinator. A call whose machine was lost finds no file and
is done as if it had never begun: a lost machine says nothing about a part.

From these and from what a pass planned and committed follows the plan of the next pass. The first
takes the plan as it is. What is left of it, since its worker died or was taken out of work, is
tried on other workers, in smaller groups and then alone; a part that ended two workers while it was
alone with them becomes a failure of kind `poison`. A pass is as good as a run that was killed and
started again: it leaves out what is committed. Knows no Ray.
"""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.runtime.resources import Resources
from corpus_asr.schemas import PACKS, RESULTS
from corpus_asr.stages.parts import FAILED
from corpus_asr.storage.run_state.run_tables import read_redo
from corpus_asr.storage.run_state.tables import SUFFIX, OutputStore
from corpus_asr.storage.stores.uri import redact_uri

PartKey = tuple[str, int]
"""`recording_id` and index of a part."""

EXTRACT, TRANSCRIBE = "extract", "transcribe"
DEATHS_FOLDER = "_run/deaths"
# Kinds of rows there. Of the first, the worker ended while this row's part was in work ...
DIED = "poison"
# ... of the second it was not begun, as its worker was taken out of work.
HANDED_BACK = "handed_back"
# Processes of one worker that may end in a row before one of them is known to work.
MAX_FAILURES = 3
KILLED = "its process was killed, or ran out of memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a worker computes on: a GPU of a machine, or its CPUs."""

    node_id: str
    host: str
    gpus: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A name for comparison."""
        return "/".join((self.node_id, *self.gpus))

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)} of {self.host}" if self.gpus else f"CPUs of {self.host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One of the passes of a run over what is not committed, as its workers know it."""

    number: int = 1
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    alone: bool = False
    """Whether each worker has one part at a time, so that a death names its cause."""
    avoided: frozenset[str] = frozenset()
    """Devices, by stage, on which a part of this pass ended a worker, or that failed alone."""
    tried: Mapping[PartKey, int] = field(default_factory=dict)
    """How often a worker ended with a part before this pass."""

    def avoids(self, stage: str, device: Device) -> bool:
        """Return whether others should do the work of this pass, if there are any."""
        return avoided(stage, device.id) in self.avoided

    def attempts_of(self, key: PartKey) -> int:
        """Return the number of the present try."""
        return self.tried.get(key, 0) + 1


def avoided(stage: str, device_id: str) -> str:
    """Return the name in `Pass.avoided`."""
    return f"{stage} {device_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A call in which a process ended."""

    doing: str
    """What it had begun last."""
    why: str = ""
    """Its error, where it had the time to say it."""
    noted: bool = False
    """Whether the driver knows."""


class Trail:
    """What this worker's processes leave on their machine during one pass."""

    def __init__(self, of: Pass, device: Device, worker: str) -> None:
        # Random and of this pass: nobody else can know or hold the name.
        self._prefix = f"corpus-asr-{of.token}-{device.node_id[:12]}"
        self._worker = self._path(f"worker {worker}")
        self._open: set[Path] = set()

    def before(self, call: str) -> "Ended | None":
        """Return what is known of a process that ended in this call."""
        try:
            return Ended(**json.loads(self._path(call).read_text()))
        except FileNotFoundError:
            return None

    def begin(self, call: str, doing: str = "") -> None:
        """Note what is about to be done in a call."""
        path = self._path(call)
        self._open.add(path)
        _write(path, asdict(Ended(doing=doing)))

    def clear(self, call: str) -> None:
        """Forget a call that has ended."""
        path = self._path(call)
        self._open.discard(path)
        path.unlink(missing_ok=True)

    def note(self, call: str, ended: "Ended") -> None:
        """Remember that the driver knows of it: Ray may ask again, for what else a task holds."""
        _write(self._path(call), asdict(replace(ended, noted=True)))

    def fail(self, why: str) -> None:
        """Note why this process is about to end, with all calls that it is in."""
        for path in list(self._open):
            with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                _write(path, json.loads(path.read_text()) | {"why": why})
        num_failures, _ = self.failures()
        _write(self._worker, [max(1, num_failures), why])

    def failures(self) -> tuple[int, str]:
        """Return how many processes ended since one worked, and why the last one did."""
        try:
            num_failures, why = json.loads(self._worker.read_text())
        except FileNotFoundError:
            return 0, ""
        return num_failures, why or KILLED

    @property
    def is_out(self) -> bool:
        """Whether so many processes of this worker failed that no other is to try."""
        return self.failures()[0] >= MAX_FAILURES

    def start(self) -> None:
        """Note that this process is not known to work yet."""
        num_failures, _ = self.failures()
        _write(self._worker, [num_failures + 1, ""])

    def works(self) -> None:
        """Note that this process works."""
        self._worker.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
        return Path(tempfile.gettempdir()) / f"{self._prefix}-{digest}"


def _write(path: Path, value: object) -> None:
    # Whoever reads it may come while it is written, after the process was killed.
    written = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    written.write_text(json.dumps(value))
    written.replace(path)


def note_deaths(store: OutputStore, of: Pass, rows: pa.Table, device: Device) -> None:
    """Tell the driver which parts a worker did not do, as RESULTS rows of kind `DIED` or not."""
    if not rows.num_rows:
        return
    index = RESULTS.get_field_index("device")
    devices = pa.array([device.id] * rows.num_rows, pa.string())
    named = rows.set_column(index, RESULTS.field(index), devices)
    # Their addresses are those that were given.
    store.private().write_table(f"{DEATHS_FOLDER}/{of.token}-{uuid.uuid4().hex}{SUFFIX}", named)


def read_deaths(store: OutputStore, of: Pass) -> pa.Table:
    """Return what was noted in a pass; removes that, and what runs left that were killed."""
    names = list(store.all_names(DEATHS_FOLDER))
    own = [name for name in names if name.startswith(f"{DEATHS_FOLDER}/{of.token}-")]
    found = [store.read_table(name, RESULTS) for name in own]
    store.remove_all(names)
    return pa.concat_tables([RESULTS.empty_table(), *found])


@contextlib.contextmanager
def in_call(trail: Trail, call: str) -> Iterator[None]:
    """Forget a call at its end, unless the process ends first."""
    try:
        yield
    finally:
        trail.clear(call)


# The first over the plan, one in small groups, two alone; the others for what strikes meanwhile.
MAX_PASSES = 6
# Workers that a part may end while nothing else was in work there.
MAX_DEATHS_ALONE = 2
# As few recordings for each worker are tried alone at once; more are tried in small groups first.
FEW_PER_WORKER = 16
# By so much the parts are fewer that one worker has in a small group.
SMALLER = 8

WRITTEN = pa.schema(
    [RESULTS.field(each) for each in ("recording_id", "part", "last_part", "status")]
)


class Done:
    """The parts that a run committed, read from its commits once a pass has to follow."""

    def __init__(self) -> None:
        self._rows = WRITTEN.empty_table()
        self._names: set[str] = set()

    def read(self, store: OutputStore, names: Iterable[str]) -> None:
        """Add what is in these commits, of which some may be known."""
        new = [name for name in names if name not in self._names]
        self._names.update(new)
        found = [rows.cast(WRITTEN) for _, rows in store.committed(WRITTEN.names, new)]
        self.add(pa.concat_tables([WRITTEN.empty_table(), *found]))

    def add(self, rows: pa.Table, *, earlier: bool = False) -> None:
        """Add rows of WRITTEN; where a part is there twice, the later one counts."""
        both = [rows, self._rows] if earlier else [self._rows, rows]
        self._rows = pa.concat_tables(both).combine_chunks()

    def remaining(self, packs: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
        """Yield the files of PACKS rows that are not complete, without the parts that are done."""
        complete, left = self._complete(), list[dict[str, Any]]()
        for pack in packs:
            files = pa.array(pc.list_flatten(pack["files"]).combine_chunks())
            ids = _sortable(pc.struct_field(files, "recording_id"))
            places = np.minimum(np.searchsorted(complete, ids), len(complete) - 1)
            left += files.filter(pa.array(complete[places] != ids)).to_pylist()
        ids_left = pa.array([file["recording_id"] for file in left], pa.string())
        rows = self._rows.filter(pc.is_in(self._rows["recording_id"], ids_left))
        parts: dict[str, dict[int, tuple[bool, bool]]] = defaultdict(dict)
        for row in rows.to_pylist():
            parts[row["recording_id"]][row["part"]] = row["last_part"], row["status"] == FAILED
        for file in left:
            own = parts[file["recording_id"]]
            # What is done is none that failed last: such a failure may come again.
            done = set(file["done_parts"] or ()) | {
                part for part, (last, failed) in own.items() if not (last and failed)
            }
            if not _covers(done | set(own), own):
                yield file | {"done_parts": sorted(done)}

    def left(self, store: OutputStore, packs: Iterable[pa.Table]) -> list[dict[str, Any]]:
        """Return the same files, where earlier runs may have committed some last parts."""
        left = list(self.remaining(packs))
        if partly := [file for file in left if file["done_parts"]]:
            know_last_parts(store, partly, self)
            left = list(self.remaining([packs_of(left)]))
        return left

    def _complete(self) -> np.ndarray:
        """Return the recordings of which this run committed every part, sorted; never nothing."""
        ends = self._rows.filter(self._rows["last_part"]).group_by("recording_id")
        parts = self._rows.select(["recording_id", "part"]).join(
            ends.aggregate([("part", "min")]), "recording_id", join_type="inner"
        )
        # Parts after the end count for nothing.
        until_end = parts.filter(pc.less_equal(parts["part"], parts["part_min"]))
        counts = until_end.group_by(["recording_id", "part_min"])
        counts = counts.aggregate([("part", "count_distinct")])
        whole = pc.equal(counts["part_count_distinct"], pc.add(counts["part_min"], 1))
        ids = _sortable(counts.filter(whole)["recording_id"].combine_chunks())
        return np.sort(np.append(ids, np.bytes_(b"")))


def _sortable(ids: pa.Array) -> np.ndarray:
    return np.array(ids.cast(pa.binary()).to_pylist(), np.bytes_)


def _covers(done: set[int], parts: dict[int, tuple[bool, bool]]) -> bool:
    end = min((part for part, (last, _) in parts.items() if last), default=None)
    return end is not None and done.issuperset(range(end + 1))


def know_last_parts(store: OutputStore, files: Iterable[dict[str, Any]], into: Done) -> None:
    """Add the last parts that earlier runs committed of files of which parts were done before."""
    versions = {file["recording_id"]: (file["etag"], file["size_bytes"]) for file in files}
    columns = ["run_id", "recording_id", "etag", "size_bytes", "part", "last_part", "status"]
    redone: dict[str, set[str]] = defaultdict(set)
    for row in read_redo(store).to_pylist() if versions else ():
        redone[row["recording_id"]].update(row["earlier_runs"])
    known: list[dict[str, Any]] = []
    for batch in store.outcomes(columns) if versions else ():
        last = batch.filter(batch.column("last_part"))
        for row in last.to_pylist():
            found = versions.get(row["recording_id"])
            if row["run_id"] in redone.get(row["recording_id"], ()):
                continue
            if found == (row["etag"], row["size_bytes"]) and row["status"] != FAILED:
                known.append({name: row[name] for name in WRITTEN.names})
    into.add(pa.Table.from_pylist(known, schema=WRITTEN), earlier=True)


@dataclass(slots=True)
class Suspects:
    """What is known of the parts that were in work when their workers ended."""

    tried: Counter[PartKey] = field(default_factory=Counter)
    reasons: dict[str, None] = field(default_factory=dict)
    """Why workers ended, each once, the first first."""
    _alone: dict[tuple[str, str, int], list[dict[str, Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Rows of parts that were alone, by stage, recording and part."""

    def add(self, deaths: pa.Table, of: Pass) -> None:
        """Take what was noted in a pass."""
        self.reasons.update(dict.fromkeys(deaths["error_message"].to_pylist()))
        died = [row for row in deaths.to_pylist() if row["error_kind"] == DIED]
        # Once for a pass: two of them are two workers.
        rows = {(row["error_stage"], row["recording_id"], row["part"]): row for row in died}
        for (_, recording, part), row in rows.items():
            self.tried[recording, part] += 1
            if of.alone:
                self._alone[row["error_stage"], recording, part].append(row)

    def take_poison(self, remaining: Iterable[dict[str, Any]]) -> pa.Table:
        """Return RESULTS rows of the parts of these files that are given up."""
        files = {file["recording_id"]: file for file in remaining}
        open_ = {
            (stage, recording, part): rows
            for (stage, recording, part), rows in self._alone.items()
            if recording in files
            and (stage == EXTRACT or part not in files[recording]["done_parts"])
        }
        given_up = {key: rows for key, rows in open_.items() if len(rows) >= MAX_DEATHS_ALONE}
        self._alone = defaultdict(list, {k: rows for k, rows in open_.items() if k not in given_up})
        poison = [
            self._poison(rows, set(files[recording]["done_parts"]))
            for (_, recording, _), rows in given_up.items()
        ]
        return pa.Table.from_pylist(poison, schema=RESULTS)

    def _poison(self, rows: list[dict[str, Any]], done: set[int]) -> dict[str, Any]:
        row = rows[-1]
        part, doing = row["part"], f"transcribing part {row['part']} of"
        if row["error_stage"] == EXTRACT:
            # A done part keeps its outcome: the failure takes the first index still open.
            part = next(index for index in range(len(done) + 1) if index not in done)
            doing = "extracting"
        attempts = self.tried[row["recording_id"], row["part"]]
        whys = "; ".join(dict.fromkeys(each["error_message"] for each in rows))
        message = (
            f"{doing} {redact_uri(row['uri'])}: its worker ended {attempts} times, {len(rows)} of "
            f"them with nothing else in work ({whys}), expected a result; look into the worker's "
            "log (out of memory?) and try the recording by itself with another output.uri"
        )
        return row | {"part": part, "error_message": message, "attempts": attempts, "device": None}

    def devices(self) -> set[tuple[str, str]]:
        """Return where parts that are to be tried again have ended a worker: stage and device."""
        alone = self._alone.items()
        return {(stage, row["device"]) for (stage, _, _), rows in alone for row in rows}


def next_pass(
    before: Pass,
    suspects: Suspects,
    *,
    few: bool,
    bad: frozenset[str],
    devices: Mapping[str, int],
) -> Pass:
    """Return the pass after one that left something to do.

    Args:
        before: the pass that left something.
        suspects: what is known of it.
        few: whether there are so few recordings that each may be tried alone.
        bad: devices that fail by themselves, as `Pass.avoided`.
        devices: how many there are for each stage; where all are avoided, none is.
    """
    ended = suspects.devices()
    elsewhere = {
        avoided(stage, device)
        for stage, device in ended
        if sum(other == stage for other, _ in ended) < devices[stage]
    }
    return Pass(
        number=before.number + 1,
        alone=few or before.number > 1,
        avoided=bad | elsewhere,
        tried=dict(suspects.tried),
    )


def resources_for(of: Pass, resources: Resources, *, num_files: int, num_nodes: int) -> Resources:
    """Return what the workers of a pass after the first get: less at a time."""
    calls = 1 if of.alone else max(1, resources.parts_in_flight // SMALLER)
    # Decoders that run out of memory together may not do so alone.
    extract = min(num_nodes if of.alone else resources.extract_workers, num_files)
    return dataclasses.replace(
        resources,
        extract_workers=max(1, min(extract, resources.extract_workers)),
        packs_per_task=1,
        rows_per_call=1,
        calls_in_flight=calls,
    )


def packs_of(files: list[dict[str, Any]]) -> pa.Table:
    """Return a pack for each file."""
    rows = [
        {"pack_id": number, "pack_bytes": file["size_bytes"] or 0, "files": [file]}
        for number, file in enumerate(files)
    ]
    return pa.Table.from_pylist(rows, schema=PACKS)
