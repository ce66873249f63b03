"""Seeded mistakes in what keeps rows exact: each must make a test fail.

A mistake replaces one text of one file in a copy of the package, and the tests of that part run
against the copy. A survivor names a behavior that no test holds; a row whose text has changed fails
too, so that the list stays true.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 540  # a mistake that hangs its tests is not caught by one of them
STATE = "storage/run_state"
STORAGE = "tests/storage"


class Mutation(NamedTuple):
    """One mistake, and the test files of which one must fail."""

    file: str
    old: str
    new: str
    tests: Sequence[str]


COMMIT = ["tests/runtime/test_local.py"]
LEDGER = [f"{STORAGE}/test_ledger.py", f"{STORAGE}/test_finish.py"]
LOCK = [f"{STORAGE}/test_lock.py", f"{STORAGE}/test_taken_over.py"]
PLAN = [f"{STORAGE}/test_plan.py"]
CLOCKS = [f"{STORAGE}/test_clocks.py"]
FINISH = [f"{STORAGE}/test_finish.py", f"{STORAGE}/test_ledger.py"]
TABLES = [f"{STORAGE}/test_tables.py"]
TIMES = ["tests/transcription/test_windows.py"]

MUTATIONS = {
    # Commit
    "a batch that no table takes is refused as one row": Mutation(
        "runtime/commit.py", "if results.num_rows > 1:", "if results.num_rows < 1:", COMMIT
    ),
    "halves leave out the row between them": Mutation(
        "runtime/commit.py", "self(results.slice(half))", "self(results.slice(half + 1))", COMMIT
    ),
    "a failing store fails the recordings": Mutation(
        "runtime/commit.py", "except CorpusAsrError:", "except KeyboardInterrupt:", COMMIT
    ),
    "a refused row keeps its segments": Mutation(
        "runtime/commit.py", '"segments_written": 0, "segments": []}',
        '"segments_written": 0, "segments": results["segments"][0].as_py()}', COMMIT,
    ),
    "each part counts as a recording": Mutation(
        "runtime/commit.py", "files=last.num_rows", "files=results.num_rows",
        ["tests/runtime/test_coordinator.py", *COMMIT],
    ),
    # Ledger
    "the oldest failure counts, not the newest": Mutation(
        f"{STATE}/ledger.py", "np.where(failed, -1, 1)", "np.where(failed, 1, 1)", LEDGER
    ),
    "the newest success counts, not the oldest": Mutation(
        f"{STATE}/ledger.py", "np.where(failed, -1, 1)", "np.where(failed, -1, -1)", LEDGER
    ),
    "a failure counts before a success": Mutation(
        f"{STATE}/ledger.py", "keys[1] * age, failed, keys[2]", "keys[1] * age, ~failed, keys[2]",
        LEDGER,
    ),
    "a recording with a hole is done": Mutation(
        f"{STATE}/ledger.py", "(end < nowhere) & (until_end == end + 1)", "end < nowhere", LEDGER
    ),
    "a recording without its last part is done": Mutation(
        f"{STATE}/ledger.py", "(end < nowhere) & (until_end == end + 1)", "until_end > 0", LEDGER
    ),
    "an unknown version fits none": Mutation(
        f"{STATE}/ledger.py", "pc.fill_null(pc.equal(left, right), True)",
        "pc.fill_null(pc.equal(left, right), False)", LEDGER,
    ),
    "a changed size is the same version": Mutation(
        f"{STATE}/ledger.py", '_same(etag, now["etag"]) & _same(size, now["size_bytes"])',
        '_same(etag, now["etag"])', LEDGER,
    ),
    "rows of replaced content count": Mutation(
        f"{STATE}/ledger.py", "stale[rows] = ~self._fresh(rows, files, batch)",
        "stale[rows] = False", LEDGER,
    ),
    "what is no longer listed is dropped": Mutation(
        f"{STATE}/ledger.py", "stale |= ~listed & self._superseded()", "stale |= ~listed", LEDGER
    ),
    "commits without their segments count": Mutation(
        f"{STATE}/ledger.py",
        'table = table.filter(pc.invert(pc.is_in(table["object"], value_set=gone)))', "pass",
        LEDGER,
    ),
    "a listing that lags loses commits": Mutation(
        f"{STATE}/ledger.py", "store.missing(set().union(*promised.values()) - present)",
        "set().union(*promised.values()) - present", LEDGER,
    ),
    "failures that would come again are retried": Mutation(
        f"{STATE}/ledger.py", "again if retry is Retry.all else again & self._retryable[rows]",
        "again", LEDGER,
    ),
    "recordings left alone are retried": Mutation(
        f"{STATE}/ledger.py", "self._failed[rows] & ~self._spared[self._code[rows]]",
        "self._failed[rows].copy()", LEDGER,
    ),
    "the place of an earlier end stays taken": Mutation(
        f"{STATE}/ledger.py", "half = np.isin(files, left) & ~ended",
        "half = np.isin(files, left)", LEDGER,
    ),
    "one run's failure counts as two tries": Mutation(
        f"{STATE}/ledger.py", "before.tries + (before.run_id != self.run_id)", "before.tries + 1",
        LEDGER,
    ),
    # Lock
    "a process of another machine is dead here": Mutation(
        f"{STATE}/lock.py", " or self.machine != _machine():", ":", LOCK
    ),
    "a number that was given again is alive": Mutation(
        f"{STATE}/lock.py", "return _started_ticks(self.pid) != self.started_ticks",
        "return False", LOCK,
    ),
    "a process that nobody waited for is alive": Mutation(
        f"{STATE}/lock.py", "return None if fields[0] in _DEAD_STATES else fields[19]",
        "return fields[19]", LOCK,
    ),
    "a lock is taken over without being asked": Mutation(
        f"{STATE}/lock.py", "if not self._steal:", "if False:", LOCK
    ),
    "a lock that beats is taken over": Mutation(
        f"{STATE}/lock.py", "if found != content:", "if found == b'':", LOCK
    ),
    "a heartbeat leaves the lock as it was": Mutation(
        f"{STATE}/lock.py", "beats=self._holder.beats + 1, heartbeat_at=_now()",
        "beats=self._holder.beats", LOCK,
    ),
    "the last of two writers believes the first": Mutation(
        f"{STATE}/lock.py", "return self.key.is_of(self._peek())", "return True", LOCK
    ),
    "any lock is this run's": Mutation(
        f"{STATE}/lock.py", "return holder is not None and holder.token == self.token",
        "return holder is not None", LOCK,
    ),
    "the lock of another run is removed": Mutation(
        f"{STATE}/lock.py", "if self.key.is_of(filesystem.peek(self._uri, self._beat_options)):",
        "if True:", LOCK,
    ),
    "what a frozen run still puts counts": Mutation(
        f"{STATE}/lock.py", "self.store.close_run(robbed.run_id)", "pass", LOCK
    ),
    "a run writes without looking at its lock": Mutation(
        f"{STATE}/lock.py", "self.store = self._store.held(self.key)", "self.store = self._store",
        LOCK,
    ),
    # Plan
    "what is in use is cleared away": Mutation(
        f"{STATE}/plan.py", "if _plan_of(name) < finished:", "if True:", PLAN
    ),
    "a pack takes any number of files": Mutation(
        f"{STATE}/plan.py", " or held == max_files):", "):", PLAN
    ),
    "a pack takes any number of bytes": Mutation(
        f"{STATE}/plan.py", "filled + weight > pack_bytes or held", "held", PLAN
    ),
    "the smallest come first": Mutation(
        f"{STATE}/plan.py", "np.lexsort((ids, -sizes, ~unknown))",
        "np.lexsort((ids, sizes, ~unknown))", PLAN,
    ),
    "a plan of a slow clock is older than the last": Mutation(
        f"{STATE}/plan.py", "max(time.time_ns(), newest_ns + 1)", "time.time_ns()",
        [*CLOCKS, *PLAN],
    ),
    "neighbors of the output folder are not listed": Mutation(
        f"{STATE}/plan.py", 'store.uri + "/")', "store.uri)", PLAN
    ),
    "the first row of a shard is in two": Mutation(
        f"{STATE}/plan.py", "(ours < start + SHARD_ROWS)", "(ours <= start + SHARD_ROWS)", PLAN
    ),
    "signed addresses stay in the listing": Mutation(
        f"{STATE}/plan.py", "safe = without_credentials(files)", "safe = files",
        [*PLAN, f"{STORAGE}/test_start.py"],
    ),
    # Finish
    "a finish leaves the mark of the last one": Mutation(
        f"{STATE}/finish.py", "    store.remove(SUCCESS_NAME)\n", "", FINISH
    ),
    "a run that was cut short is complete": Mutation(
        f"{STATE}/finish.py", "if counts.remaining == 0:", "if True:", FINISH
    ),
    "rows lost of the listing are not missed": Mutation(
        f"{STATE}/finish.py", "num_listed = max(num_listed, resolution.num_listed)",
        "num_listed = resolution.num_listed", FINISH,
    ),
    "second commits stay": Mutation(
        f"{STATE}/finish.py", "    keep_only(store, resolution.keep)\n", "", FINISH
    ),
    "channels add up to a longer recording": Mutation(
        f"{STATE}/finish.py", 'pc.divide(grouped["duration_s_sum"], num_channels)',
        'grouped["duration_s_sum"]', FINISH,
    ),
    "a merged commit sorts after younger ones": Mutation(
        f"{STATE}/finish.py", "stem=store.stem(max(0, time_ns_of(names[0]) - 1))",
        "stem=store.stem()", FINISH,
    ),
    "segments of other parts are merged": Mutation(
        f"{STATE}/finish.py", "if not theirs.equals(", "if False and not theirs.equals(", FINISH
    ),
    "missing segments are merged": Mutation(
        f"{STATE}/finish.py", "if read.get(name, 0) != count:", "if read.get(name, 0) > count:",
        FINISH,
    ),
    "commits go before their replacement is there": Mutation(
        f"{STATE}/finish.py", "    store.remove_all(outcomes_names)\n"
        "    store.remove_all(segments_names)\n",
        "    store.remove_all(segments_names)\n    store.remove_all(outcomes_names)\n",
        [*FINISH, f"{STORAGE}/test_taken_over.py"],
    ),
    "the recordings table goes before the next": Mutation(
        f"{STATE}/finish.py", "    old = store.names(RECORDINGS_FOLDER)\n",
        "    old = store.names(RECORDINGS_FOLDER)\n    store.remove_all(old)\n",
        [*FINISH, f"{STORAGE}/test_taken_over.py"],
    ),
    "segments that the listing hides are removed": Mutation(
        f"{STATE}/finish.py", "leftovers = {outcomes[name] for name in store.missing(outcomes)}",
        "leftovers = {*outcomes.values()}", FINISH,
    ),
    "rows of the last chunk are lost": Mutation(
        f"{STATE}/finish.py", "np.searchsorted(theirs, [*edges, len(places)])",
        "np.searchsorted(theirs, [*edges, len(places) - 1])", FINISH,
    ),
    # Tables
    "outcomes are put before their segments": Mutation(
        f"{STATE}/tables.py", "            self.write_bytes(segments_name, "
        "encode_parquet(rows.schema, segments))\n",
        "            late = encode_parquet(rows.schema, segments)\n"
        "            self.write_table(f'{OUTCOMES_FOLDER}/{stem}{SUFFIX}', outcomes)\n"
        "            self.write_bytes(segments_name, late)\n",
        [*TABLES, f"{STORAGE}/test_faulty_store.py", f"{STORAGE}/test_taken_over.py"],
    ),
    "labels are not counted": Mutation(
        f"{STATE}/tables.py", "pc.add(segments, labels)", "segments", TABLES
    ),
    "rows without an identity are committed": Mutation(
        f"{STATE}/tables.py", "if results[name].null_count:", "if False:", TABLES
    ),
    "passwords are written": Mutation(
        f"{STATE}/tables.py", "results = without_credentials(results)", "pass", TABLES
    ),
    "the lock is not looked at before a put": Mutation(
        f"{STATE}/tables.py", ", before=self.check)", ")", LOCK
    ),
    "all tables of a robbed run are late": Mutation(
        f"{STATE}/tables.py", "return put is not None and name not in put",
        "return put is not None", LOCK,
    ),
    "a commit of a slow clock sorts before older ones": Mutation(
        f"{STATE}/tables.py", "max(time.time_ns(), self._newest_ns + 1)", "time.time_ns()", CLOCKS
    ),
    "other models get the calibration of one": Mutation(
        f"{STATE}/tables.py", ' and row["model_revision"] == model_revision', "", TABLES
    ),
    "outcomes may name any object": Mutation(
        f"{STATE}/tables.py", "if not (named.partition", "if False and not (named.partition",
        TABLES,
    ),
    "ranges start one row late": Mutation(
        f"{STATE}/tables.py", "range(start - first, stop - first)",
        "range(start - first + 1, stop - first)", TABLES,
    ),
    # Times of a part within its recording
    "frames count from the recording": Mutation(
        "transcription/windows.py", "return self.start_s + frame / FRAMES_PER_SECOND",
        "return frame / FRAMES_PER_SECOND", TIMES,
    ),
    "the part's start is not taken off": Mutation(
        "transcription/windows.py", "round((time_s - self.start_s) * FRAMES_PER_SECOND)",
        "round(time_s * FRAMES_PER_SECOND)", TIMES,
    ),
    "a part ends where it starts": Mutation(
        "transcription/windows.py", "return self.start_s + self.num_samples / SAMPLE_RATE_HZ",
        "return self.num_samples / SAMPLE_RATE_HZ", TIMES,
    ),
    "segments count from their window": Mutation(
        "transcription/whisper.py", "start_s=start_s + span.start_s", "start_s=span.start_s",
        ["tests/transcription/test_long_form.py"],
    ),
    "words count from their window": Mutation(
        "transcription/words.py", "round(audio.start_s + word.start_s, 2)",
        "round(word.start_s, 2)", ["tests/transcription/test_words.py"],
    ),
    "a window goes on past unfinished text": Mutation(
        "transcription/long_form.py", "    if closed:\n        return spans, content_frames\n",
        "    if spans:\n        return spans, content_frames\n",
        ["tests/transcription/test_long_form.py"],
    ),
    "rows of later parts start at zero": Mutation(
        "stages/extract.py", "start_s = part.start_sample / SAMPLE_RATE_HZ", "start_s = 0.0",
        ["tests/stages/test_extract.py"],
    ),
    "the next part starts where this one did": Mutation(
        "audio/parts.py", "self._start_sample += num_samples", "self._start_sample += 0",
        ["tests/audio/test_parts.py"],
    ),
    "pieces of a part count from it": Mutation(
        "stages/parts.py", 'row["part_start_s"] + first / SAMPLE_RATE_HZ',
        "first / SAMPLE_RATE_HZ", ["tests/stages/test_parts.py"],
    ),
}  # fmt: skip


def copied(source: str, target: str) -> None:
    """Copy a file with its time, so that what Python has compiled stays valid; link large ones."""
    if os.path.getsize(source) > 1_000_000:
        os.symlink(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package and its tests, which are found there first."""
    folder = tmp_path_factory.mktemp("mutated")
    for name in ("corpus_asr", "tests"):
        shutil.copytree(ROOT / name, folder / name, copy_function=copied)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def outcome_of(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests against the package in a folder; return the exit status and what was printed."""
    found = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider",
            "-m", "not (ray or slow or gpu or network or notebook)", *tests,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )  # fmt: skip
    return found.returncode, found.stdout + found.stderr


@contextlib.contextmanager
def mutated(folder: Path, mutation: Mutation) -> Iterator[None]:
    """Put a mistake into the copy, and take it out again."""
    path = folder / "corpus_asr" / mutation.file
    source = path.read_text()
    assert source.count(mutation.old) == 1, f"{mutation.file}: {mutation.old!r} is not there once"
    try:
        rewrite(path, source.replace(mutation.old, mutation.new))
        yield
    finally:
        rewrite(path, source)


def rewrite(path: Path, source: str) -> None:
    # What is compiled is believed if the source has the same second and size.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
    path.write_text(source)


def test_the_copy_is_tested_and_passes(package: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import corpus_asr; print(corpus_asr.__file__)"],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(package)
    every = sorted({name for mutation in MUTATIONS.values() for name in mutation.tests})
    status, said = outcome_of(package, every)
    assert status == 0, said


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_caught(package: Path, name: str) -> None:
    mutation = MUTATIONS[name]
    with mutated(package, mutation):
        status, said = outcome_of(package, mutation.tests)
    caught = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    assert status == 1, f"{name}: survived {', '.join(mutation.tests)}\n{said[-2000:]}"
    assert caught is not None, said
    print(f"{name}: {caught[1]}")  # noqa: T201 - with -rP, the list
