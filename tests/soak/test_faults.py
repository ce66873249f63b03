"""Faults that strike a run in the middle: after each the tables are those of a run in peace.

Each test prints what became of the run, for the table of docs/background/reliability.md.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import extractors
from tests.support.killing import (
    PAUSE,
    RUN_LIMIT_S,
    SILENT,
    KillableJob,
    kill_below,
    killable_job,
    tables_in_peace,
    tables_of,
)
from tests.support.tables import with_section

FILES = 40
PART_BYTES = 1_000_000
# Commits on Ray take a second or more: the work has to outlast a few of them.
SLOWLY = {PAUSE: "0.5", extractors.PAUSE: "0.2", SILENT: "20"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

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


def told(what: str, recovery: Recovery) -> None:
    print(f"\n{what}: {recovery}")  # noqa: T201 - what a soak test is read for


def hits(victim: str, number: signal.Signals) -> Callable[[Driver], None]:
    def strike(process: Driver) -> None:
        deadline = time.monotonic() + 60
        while not kill_below(process.pid, victim, number):
            assert time.monotonic() < deadline, f"no {victim}"
            time.sleep(0.05)

    return strike


@pytest.mark.ray
@pytest.mark.parametrize(
    ("victim", "number", "code", "words"),
    [
        ("raylet", signal.SIGKILL, 3, "raylet on this machine has died"),
        ("gcs", signal.SIGKILL, 3, "GCS on the head node has died"),
        ("extract", signal.SIGSTOP, 0, "reported nothing for 20 s"),
        ("transcribe", signal.SIGSTOP, 0, "reported nothing for 20 s"),
    ],
)
def test_a_process_of_ray_that_dies_or_freezes(
    victim: str, number: signal.Signals, code: int, words: str, tmp_path: Path
):
    # Extraction has to be at work for most of the time, and then there is to be a queue.
    pauses = {extractors.PAUSE: "0.8", PAUSE: "0.1"} if victim == "extract" else {}
    job = killable_job(tmp_path / "job", files=FILES, ray=True, environment=SLOWLY | pauses)
    recovery = recover(job, tmp_path, hits(victim, number))
    told(f"{victim} {number.name}", recovery)
    assert recovery.code == code, recovery.said
    assert words in recovery.said


def test_a_decoder_that_is_frozen_costs_its_recording_until_a_retry(tmp_path: Path):
    job = killable_job(tmp_path / "job", files=FILES, environment={extractors.PAUSE: "0.3"})
    job = replace(job, config=with_section(job.config, "extract", item_timeout_s=5.0))
    expected = tables_in_peace(job, tmp_path)
    with job.started() as process:
        job.wait_for_commits(process, FEW_COMMITS)
        hits("decoder", signal.SIGSTOP)(process)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    rows = tables_of(job.config)["recordings"]
    assert [row["uri"] for row in rows] == [row["uri"] for row in expected["recordings"]]
    frozen = [row for row in rows if row["error_kind"] == "decoder_killed"]
    assert len(frozen) == 1
    code, said = job.finish("--retry-failed")
    assert code == 0, said
    assert tables_of(job.config) == expected


@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=pytest.mark.ray)])
def test_a_driver_that_is_frozen_while_another_takes_its_folder_over(ray: bool, tmp_path: Path):
    """What it still commits after SIGCONT does not count, and it says why it ends."""
    job = killable_job(tmp_path / "job", files=FILES, ray=ray, environment=SLOWLY)
    expected = tables_in_peace(job, tmp_path)
    with job.left_behind() as process:
        job.wait_for_commits(process, FEW_COMMITS)
        freeze(process)
        frozen_s = time.monotonic()
        code, said = second_of(job).finish("--steal-lock")
        assert code == 0, said
        took_s = time.monotonic() - frozen_s
        assert tables_of(job.config) == expected
        process.send_signal(signal.SIGCONT)
        thawed_s = time.monotonic()
        out, err = process.communicate(timeout=600)
    print(f"\ntaken over and done after {took_s:.0f} s; the first ended with exit "  # noqa: T201
          f"{process.returncode} {time.monotonic() - thawed_s:.0f} s after SIGCONT")  # fmt: skip
    assert process.returncode == 3, out + err
    assert "expected that of this run" in err
    assert tables_of(job.config) == expected
    job.wait_until_gone()
    code, said = job.finish()
    assert code == 0, said
    assert tables_of(job.config) == expected


@dataclass(frozen=True)
class Mounts:
    """A namespace with mounts of its own, as long as the process in it lives."""

    pid: int

    @property
    def enter(self) -> tuple[str, ...]:
        """What runs a command within."""
        return ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(self.pid))

    def run(self, *command: str) -> None:
        subprocess.run([*self.enter, *command], check=True, timeout=60)

    def outside(self, path: Path) -> Path:
        """Return where this process finds a path of the namespace."""
        return Path(f"/proc/{self.pid}/root{path}")


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    try:
        process = subprocess.Popen(["unshare", "-Urm", "sh", "-c", "echo in; exec sleep infinity"],
                                   stdout=subprocess.PIPE, text=True)  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs unshare")
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "in\n":
            pytest.skip("this system grants no namespaces")
        yield Mounts(process.pid)
    finally:
        process.kill()
        process.communicate()


def on_small_disk(mounts: Mounts, tmp_path: Path, size: str) -> tuple[KillableJob, KillableJob]:
    """Return a job whose output folder has a disk of its own, and the job as seen from here."""
    (tmp_path / "job" / "output").mkdir(parents=True)
    mounts.run("mount", "-t", "tmpfs", "-o", f"size={size}", "x", str(tmp_path / "job" / "output"))
    job = killable_job(tmp_path / "job", files=FILES, environment={PAUSE: "0.1"})
    job = replace(job, within=mounts.enter)
    output = str(mounts.outside(Path(job.config.output.uri)))
    return job, replace(job, config=with_section(job.config, "output", uri=output), seen=set())


def test_a_disk_that_fills_up(mounts: Mounts, tmp_path: Path):
    job, seen = on_small_disk(mounts, tmp_path, "64m")

    def fill(_: Driver) -> None:
        with (
            contextlib.suppress(OSError),
            open(f"{seen.config.output.uri}/other", "wb", buffering=0) as file,
        ):
            while True:
                file.write(bytes(1 << 20))

    def mend() -> None:
        os.remove(f"{seen.config.output.uri}/other")

    recovery = recover(job, tmp_path, fill, mend=mend, seen_as=seen)
    told("disk full", recovery)
    assert recovery.code == 3, recovery.said
    assert "no space left" in recovery.said


def test_an_output_that_becomes_read_only(mounts: Mounts, tmp_path: Path):
    job, seen = on_small_disk(mounts, tmp_path, "64m")
    output = job.config.output.uri

    def remount(how: str) -> None:
        deadline = time.monotonic() + 30
        while True:  # refused while a file is open for writing
            try:
                return mounts.run("mount", "-o", f"remount,{how}", output)
            except subprocess.CalledProcessError:
                assert time.monotonic() < deadline

    recovery = recover(
        job, tmp_path, lambda _: remount("ro"), mend=lambda: remount("rw"), seen_as=seen
    )
    told("read-only", recovery)
    assert recovery.code == 2, recovery.said
    assert "access denied (Read-only file system)" in recovery.said


@pytest.mark.ray
def test_shared_memory_that_fills_up(mounts: Mounts, tmp_path: Path):
    """Of a Ray that keeps its objects there, filled by somebody else."""
    mounts.run("mount", "-t", "tmpfs", "-o", "size=2g", "x", "/dev/shm")
    large = SLOWLY | {extractors.MEL_BINS: str(PART_BYTES // (2 * extractors.FRAMES))}
    job = killable_job(tmp_path / "job", files=FILES, ray=True, environment=large)
    job = replace(job, within=mounts.enter)
    other = mounts.outside(Path("/dev/shm/other"))

    def fill(_: Driver) -> None:
        print(f"\n{shutil.disk_usage(other.parent)} of /dev/shm before")  # noqa: T201
        assert shutil.disk_usage(other.parent).used > PART_BYTES, "Ray keeps its objects elsewhere"
        with contextlib.suppress(OSError), open(other, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))

    recovery = recover(job, tmp_path, fill, mend=lambda: os.remove(other))
    told("/dev/shm full", recovery)
    assert recovery.code == 3, recovery.said
    assert "its raylet on this machine has died" in recovery.said
    assert "check memory (dmesg), /dev/shm" in recovery.said
