"""What a worker leaves for whoever comes after it: which call it was in, and why it ended.

In: calls that begin and end. Out: files of this machine, which outlive the process that a part
kills, and rows in the output folder's `_run/deaths/`, from which the driver decides what is tried
again. Neither needs the run's coordinator. A call whose machine was lost finds no file and is done
as if it had never begun: a lost machine says nothing about a part.
"""

import contextlib
import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from corpus_asr.schemas import RESULTS
from corpus_asr.storage.run_state.tables import SUFFIX, OutputStore

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
    index = RESULTS.get_field_index("device")
    named = rows.set_column(index, RESULTS.field(index), pa.array([device.id] * rows.num_rows))
    store.write_table(f"{DEATHS_FOLDER}/{of.token}-{uuid.uuid4().hex}{SUFFIX}", named)


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
