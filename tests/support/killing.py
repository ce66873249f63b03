"""Runs in processes of their own that are killed at random moments, and what they leave.

    job = killable_job(folder, files=200)
    kill_and_resume(job, kills=20, seed=1, total=300)
    assert tables_of(job.config) == tables_of(undisturbed)

Run as a module it is the command line with a scripted engine and extractor, which take their time:
`python -m tests.support.killing run JOB.yaml --local`.
"""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.config.storage_options import NO_OPTIONS
from corpus_asr.pipelines import driver
from corpus_asr.stages.transcribe import EngineSpec
from corpus_asr.storage.run_state.speaker_turns import read_turns, read_voices
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import ScriptedEngine, script, scripted_engine, scripted_job
from tests.support.tables import rows_of, stored_segments, with_section

REPOSITORY = Path(__file__).resolve().parents[2]
# Of `output`: commits are as small as they can be.
COMMIT_EACH = {"commit_mb": 1e-6}
# What differs between two runs that did the same.
VARYING = {
    "run_id", "begun_by", "decode_s", "transcribe_s", "attempts", "device", "gone_since",
}  # fmt: skip
PAUSE = "CORPUS_ASR_TEST_PAUSE_S"
_COMMAND_LINE = "from corpus_asr.__main__ import main; main()"
# What the command lines of those hold that are killed below a driver.
_TITLES = {
    "extract": "ExtractWorker",
    "transcribe": "TranscribeWorker",
    "board": "ray::RunCoordinator",
    "decoder": "corpus_asr.stages.isolation import serve",
    "raylet": "src/ray/raylet/raylet",
    "gcs": "src/ray/gcs/gcs_server",
}
# Keeps the job's own engine and extractor.
OWN_ENGINE = "CORPUS_ASR_TEST_OWN_ENGINE"
_SLOW_EXTRACTOR = "tests.support.extractors:make_slow"
# Instead of the usual 300 s before a worker that reports nothing is taken for frozen.
SILENT = "CORPUS_ASR_TEST_SILENT_S"
# Machines of tests stop processes for minutes. Ray's agents need one to see that their Ray is dead.
GONE_LIMIT_S = 180.0
RUN_LIMIT_S = 1200.0


class SlowEngine(ScriptedEngine):
    """Answers two parts at a time, each after a pause."""

    def __init__(self, *, pause_s: float = 0.02) -> None:
        super().__init__()
        self._pause_s = pause_s
        self._pool = ThreadPoolExecutor(2)

    def submit(self, request: Any) -> "Future[Any]":
        submit = super().submit

        def answer() -> Any:
            time.sleep(self._pause_s)
            return submit(request).result()

        return self._pool.submit(answer)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


def slow_engine(spec: EngineSpec) -> ScriptedEngine:
    """Meet `EngineFactory`."""
    return SlowEngine(pause_s=float(os.environ.get(PAUSE, "0.02")))


def scripted_corpus(folder: Path, *, files: int) -> Path:
    """Write files whose names say what becomes of them: parts, silence and failures."""
    folder.mkdir(parents=True)
    for number in range(files):
        what = ("parts=1", "parts=2", "parts=3+silent=1", "parts=2+fail=1")[number % 4]
        (folder / f"{number:04d}-{what}.wav").write_bytes(b"x" * (100 + number))
    return folder


@dataclass
class KillableJob:
    """A job that a process of its own runs; `with job.started() as process`."""

    config: RunConfig
    folder: Path
    ray: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    scripted: bool = True
    """Whether engine and extractor are the scripted ones."""
    command: str = "run"
    """Of the command line."""
    within: tuple[str, ...] = ()
    """What the command line is run by, such as one that enters a namespace."""
    seen: set[psutil.Process] = field(default_factory=set)
    """The processes of its runs."""

    @property
    def store(self) -> OutputStore:
        output = self.config.output
        return OutputStore.of(output)

    def commits(self) -> int:
        return len(self.store.commit_names())

    @contextmanager
    def started(self, *options: str) -> Iterator["subprocess.Popen[str]"]:
        """Run the job; at the end of the context nothing of it runs any more."""
        with self.left_behind(*options) as process:
            yield process
        self.wait_until_gone()

    @contextmanager
    def left_behind(self, *options: str) -> Iterator["subprocess.Popen[str]"]:
        """Run the job; at the end of the context its driver is dead, others may be about to end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        job = self.folder / "job.yaml"
        job.write_text(self.config.model_dump_json())
        program = ["-m", "tests.support.killing"] if self.scripted else ["-c", _COMMAND_LINE]
        command = [*self.within, sys.executable, *program, self.command, str(job), *options]
        process = subprocess.Popen(
            command if self.ray else [*command, "--local"],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            with _watched(process.pid, self.seen):
                yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def finish(self, *options: str) -> tuple[int, str]:
        """Let it run to its end; returns the exit code and what it said."""
        with self.started(*options) as process:
            out, err = process.communicate(timeout=RUN_LIMIT_S)
            return process.returncode, out + err

    def wait_until_gone(self) -> None:
        """Return once nothing lives that a run of this job started."""
        deadline = time.monotonic() + GONE_LIMIT_S
        while alive := list(filter(lives, self.seen)):
            if time.monotonic() > deadline:
                names = [f"{process.pid} {command_line(process)}" for process in alive]
                for process in alive:
                    process.kill()
                raise AssertionError(f"still running after their driver: {names}")
            time.sleep(0.05)

    def wait_for_commits(self, process: "subprocess.Popen[str]", count: int) -> None:
        """Return once there are so many, or the process has ended."""
        while process.poll() is None and self.commits() < count:
            time.sleep(0.02)


def killable_job(
    folder: Path,
    *,
    files: int,
    ray: bool = False,
    output: str | None = None,
    endpoint_url: str | None = None,
    environment: dict[str, str] | None = None,
) -> KillableJob:
    """Return a job over a scripted corpus below `folder`; a run of it never loads its model."""
    corpus = scripted_corpus(folder / "corpus", files=files)
    storage = {"endpoint_url": endpoint_url}
    target = {"uri": output or str(folder / "output"), "storage_options": storage}
    config = scripted_job(
        folder,
        source={"uri": str(corpus)},
        extract={"pack_mb": 0.001, "workers": 1},
        output={"max_failed_fraction": 1.0} | COMMIT_EACH | target,
        speakers="corpus",
    )
    (Path(config.model.checkpoint) / "model.safetensors").touch()
    return KillableJob(config, folder / "job", ray=ray, environment=environment or {})


def into(job: KillableJob, output: Path) -> KillableJob:
    """Return the same job into a folder of its own, in one process."""
    config = with_section(job.config, "output", uri=str(output), storage_options=NO_OPTIONS)
    return KillableJob(config, output.with_name(f"{output.name}-job"), scripted=job.scripted)


def tables_in_peace(job: KillableJob, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of the same scripted job in this process, which nothing disturbs."""
    undisturbed = into(job, folder / "undisturbed")
    with pytest.MonkeyPatch.context() as patched:
        script(patched.setattr, engine=scripted_engine)
        driver.run(undisturbed.config, local=True, progress=None)
    tables = tables_of(undisturbed.config)
    assert {row["status"] for row in tables["outcomes"]} == {"ok", "no_speech", "failed"}
    assert len(tables["speakers"]) == len(tables["recordings"])
    assert {turn.speaker for row in tables["speakers"] for turn in row["turns"]} == {"S1", "S2"}
    assert {row["voice"] for row in tables["voices"]} == {"V1", "V2"}
    return tables


def kill_and_resume(
    job: KillableJob,
    *,
    kills: int,
    seed: int,
    total: int,
    most: int = 8,
    victims: Sequence[str] = ("driver",),
) -> dict[str, int]:
    """Run the job, killed at random moments, until it ends by itself; returns what was killed.

    Moments are counted in commits rather than in seconds, at most `most` apart and so that there
    are enough of the `total`: they are spread over the run however fast the machine is. A run goes
    on without its workers and decoders. It is started again as soon as its driver is dead, also
    while what that left behind is still ending.
    """
    chance = random.Random(seed)
    killed = dict.fromkeys(victims, 0)
    while sum(killed.values()) < kills:
        with job.left_behind() as process:
            _kill_some(job, process, chance, killed, kills=kills, total=total, most=most)
            if process.returncode not in (None, 0, -signal.SIGKILL):
                raise AssertionError(process.communicate()[1])
        if process.returncode == 0:
            break  # the work ran out
    else:
        code, said = job.finish()
        assert code == 0, said
    job.wait_until_gone()
    return killed


def _kill_some(
    job: KillableJob,
    process: "subprocess.Popen[str]",
    chance: random.Random,
    killed: dict[str, int],
    *,
    kills: int,
    total: int,
    most: int,
) -> None:
    """Kill until the driver is dead or there were enough, and count."""
    victims = list(killed)
    while process.poll() is None and sum(killed.values()) < kills:
        done = job.commits()
        if chance.random() < 0.2:
            _wait_while_it_starts(job, done, chance.uniform(0.0, 2.0))
        else:
            room = (total - done) // (kills - sum(killed.values()) + 1)
            job.wait_for_commits(process, done + chance.randint(1, max(1, min(most, room))))
            time.sleep(chance.uniform(0.0, 0.05))
        victim = chance.choice(victims)
        if victim == "driver":
            process.kill()
            process.wait()
            killed[victim] += 1
        elif kill_below(process.pid, victim):
            killed[victim] += 1
            if victim != "decoder":
                # A second death of those who transcribe could make poison of a part that saw the
                # first.
                victims.remove(victim)


def _wait_while_it_starts(job: KillableJob, done: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and job.commits() == done:
        time.sleep(0.02)


def kill_below(driver: int, victim: str, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal to one of the `_TITLES` below this driver; return whether there was one."""
    for process in descendants(driver):
        if _TITLES[victim] in command_line(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
                return True
    return False


def tables_of(config: RunConfig) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of all tables, sorted, without what differs between runs."""
    store = OutputStore.of(config.output)
    tables: dict[str, list[dict[str, Any]]] = {}
    read = {
        "segments": stored_segments(store), "outcomes": store.outcomes(),
        "recordings": store.recordings(),
    }  # fmt: skip
    for name, batches in read.items():
        rows = rows_of(batches)
        kept = [{k: v for k, v in row.items() if k not in VARYING} for row in rows]
        tables[name] = sorted(
            kept,
            key=lambda row: (row["uri"], row.get("part") or 0, row.get("segment") or 0, repr(row)),
        )
    turns = read_turns(store) or {}
    tables["speakers"] = [{"recording_id": each, "turns": turns[each]} for each in sorted(turns)]
    voices = read_voices(store)
    tables["voices"] = [{"speaker": each, "voice": voices[each]} for each in sorted(voices)]
    return tables


def descendants(pid: int) -> set[psutil.Process]:
    """Return the processes below a process; equal only while they are the same process."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def lives(process: psutil.Process) -> bool:
    """Tell whether a process is there, and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    """Return what a process is called; nothing where there is none any more."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def _watched(pid: int, seen: set[psutil.Process]) -> Iterator[None]:
    """Collect the processes below `pid` while the context is open: orphans have no parent."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            seen.update(descendants(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def peak_bytes(pid: int | str = "self") -> int:
    """Most memory a program has had since it began; `ru_maxrss` would know its parent's, too."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def _main() -> None:
    """Be the command line, with a scripted engine and extractor."""
    from corpus_asr.__main__ import main
    from corpus_asr.runtime import ray_dataset as dataset

    if SILENT in os.environ:
        from corpus_asr.runtime import coordinator

        coordinator.SILENT_S = float(os.environ[SILENT])
    if OWN_ENGINE not in os.environ:
        script(setattr, engine=slow_engine, extractor=_SLOW_EXTRACTOR)
    if "--local" not in sys.argv:
        dataset.run_on_ray = functools.partial(dataset.run_on_ray, extractor=_SLOW_EXTRACTOR)
    main()


if __name__ == "__main__":
    # By its own name, so that Ray's workers find the engine's factory.
    from tests.support import killing

    killing._main()
