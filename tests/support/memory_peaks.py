"""The most memory that a command and its processes take, by what they are for.

    python -m tests.support.memory_peaks JOB.yaml [--local]

runs `corpus-asr run` and prints the peak as JSON. Memory is the proportional set size (PSS), in
which a page that several processes share counts once, read five times a second over all of them;
of each kind of process also its own peak (VmHWM, shared pages included).
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

EVERY_S = 0.2
# What the command lines of those processes hold; what none of them names is the command itself.
_KINDS = {
    "extract child": "corpus_asr.stages.isolation import serve",
    "extract actor": "ExtractWorker",
    "model actor": "TranscribeWorker",
    "coordinator": "RunCoordinator",
    "idle and other workers": "ray::",
    "raylet and object store": "src/ray/raylet/raylet",
    "gcs": "src/ray/gcs/gcs_server",
    "Ray's Python processes": "/ray/",
}


@dataclass(slots=True)
class Peaks:
    """In bytes."""

    total: int = 0
    """Of all processes at one time."""
    files: int = 0
    """Of it then, pages of files: libraries, and a checkpoint while it is read."""
    shared: int = 0
    """Of it then, shared memory."""
    at_s: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)
    """Of it then, by the kind of process."""
    without_files: int = 0
    """Of all processes at one time, pages of files not counted."""
    own: dict[str, int] = field(default_factory=dict)
    """Of the largest process of each kind, its own peak."""


def peaks_of(command: Sequence[str], **options: object) -> Peaks:
    """Run a command to its end, and return what it and its processes took.

    Raises:
        CalledProcessError: it failed.
    """
    peaks = Peaks()
    began_s = time.monotonic()
    with subprocess.Popen(command, **options) as running:  # type: ignore[call-overload]
        parent = psutil.Process(running.pid)
        while running.poll() is None:
            _note(peaks, parent, time.monotonic() - began_s)
            time.sleep(EVERY_S)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return peaks


def _note(peaks: Peaks, parent: psutil.Process, at_s: float) -> None:
    total: Counter[str] = Counter()
    files = shared = 0
    for process in [parent, *parent.children(recursive=True)]:
        # It may end while it is looked at.
        with suppress(psutil.Error, OSError):
            kind = _kind(" ".join(process.cmdline()))
            pages = _fields(Path(f"/proc/{process.pid}/smaps_rollup"))
            total[kind] += pages["Pss"]
            files += pages["Pss_File"]
            shared += pages["Pss_Shmem"]
            own = _fields(Path(f"/proc/{process.pid}/status"))["VmHWM"]
            peaks.own[kind] = max(peaks.own.get(kind, 0), own)
    if total.total() > peaks.total:
        peaks.total, peaks.files, peaks.shared = total.total(), files, shared
        peaks.at_s, peaks.by_kind = at_s, dict(total.most_common())
    peaks.without_files = max(peaks.without_files, total.total() - files)


def _kind(command_line: str) -> str:
    return next((kind for kind, mark in _KINDS.items() if mark in command_line), "command")


def _fields(path: Path) -> Counter[str]:
    words = (line.split() for line in path.read_text().splitlines())
    return Counter({w[0].rstrip(":"): int(w[1]) * 1024 for w in words if w[-1] == "kB"})


if __name__ == "__main__":
    found = peaks_of([sys.executable, "-m", "corpus_asr", "run", *sys.argv[1:]])
    sys.stdout.write(json.dumps(asdict(found)))
