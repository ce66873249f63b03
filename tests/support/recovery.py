"""Runs that a fault strikes in the middle, and what they recover to.

    recovered = recover(job, folder, lambda process: process.send_signal(signal.SIGKILL))

compares the tables with those of a run in peace; what it returns reads as a row of the table of
docs/reliability.md.
"""

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.killing import RUN_LIMIT_S, KillableJob, tables_in_peace, tables_of

Tables = dict[str, list[dict[str, Any]]]
Driver = subprocess.Popen[str]
# Enough to be in the middle of the work, with as much still to come.
FEW_COMMITS = 4


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What became of a run that a fault struck."""

    code: int
    """With which its driver ended."""
    ended_s: float
    """From the fault to the driver's end."""
    done_s: float
    """Of work from the fault until all was done, by the same command again if need be."""
    said: str
    """By the driver that was struck."""
    lost: int
    doubled: int

    def __str__(self) -> str:
        again = "" if self.code == 0 else f", done by the same command {self.done_s:.0f} s later"
        return (
            f"exit {self.code} after {self.ended_s:.0f} s{again}; "
            f"lost {self.lost}, doubled {self.doubled}"
        )


def recover(
    job: KillableJob,
    folder: Path,
    strike: Callable[[Driver], object],
    *,
    mend: Callable[[], object] = lambda: None,
    seen_as: KillableJob | None = None,
    options: tuple[str, ...] = (),
) -> Recovery:
    """Strike a run once it has committed a little, mend, resume if it ended, and compare.

    `seen_as` is the job as this process sees it, where the job runs within another namespace.
    """
    seen = seen_as or job
    expected = tables_in_peace(seen, folder)
    with job.left_behind() as process:
        seen.wait_for_commits(process, FEW_COMMITS)
        assert process.poll() is None, process.communicate()[1]
        strike(process)
        struck_s = time.monotonic()
        out, err = process.communicate(timeout=RUN_LIMIT_S)
    ended_s = time.monotonic() - struck_s
    mend()
    mended_s = time.monotonic()
    if process.returncode:
        code, said = job.finish(*options)
        assert code == 0, said
    done_s = time.monotonic() - mended_s
    job.wait_until_gone()
    found = tables_of(seen.config)
    lost, doubled = difference(found, expected)
    assert found == expected, (lost, doubled)
    return Recovery(
        code=process.returncode, ended_s=ended_s, done_s=done_s, said=out + err, lost=lost,
        doubled=doubled,
    )  # fmt: skip


def difference(found: Tables, expected: Tables) -> tuple[int, int]:
    """Return how many rows are missing, and how many there are that should not be."""
    lost = doubled = 0
    for name, rows in expected.items():
        wanted, there = Counter(map(repr, rows)), Counter(map(repr, found[name]))
        lost += (wanted - there).total()
        doubled += (there - wanted).total()
    return lost, doubled


def second_of(job: KillableJob) -> KillableJob:
    """Return the same job for a driver of its own, beside one that runs or is frozen."""
    return replace(job, folder=job.folder.with_name(f"{job.folder.name}-second"), seen=set())


def freeze(process: Driver) -> None:
    """Stop a driver where it is, as SIGSTOP, a debugger or a paused machine does."""
    process.send_signal(signal.SIGSTOP)
