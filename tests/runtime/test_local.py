import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from corpus_asr.errors import CheckpointError, EngineError, FetchError
from corpus_asr.runtime import commit as committing
from corpus_asr.runtime.commit import CommitBuffer, Committer
from corpus_asr.runtime.progress import ENOUGH_ALIKE
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.store import RetryPolicy
from corpus_asr.units import MEBIBYTE
from tests.support.engines import (
    ScriptedEngine,
    always,
    broken_engine,
    outcomes_by_part,
    run_scripted,
    scripted_job,
)
from tests.support.stores import environment, faulty_store, s3_server
from tests.support.tables import packs_of, part, results


def test_every_part_is_committed_and_counted(tmp_path: Path):
    config = scripted_job(tmp_path)
    packs = [packs_of("a/parts=3/silent=1", "b/parts=2/fail=1"), packs_of("item-error/parts=1")]
    tally = run_scripted(config, packs, workers=2)
    found = {key: row["status"] for key, row in outcomes_by_part(config).items()}
    assert found == {
        ("a/parts=3/silent=1", 0): "ok",
        ("a/parts=3/silent=1", 1): "no_speech",
        ("a/parts=3/silent=1", 2): "ok",
        ("b/parts=2/fail=1", 0): "ok",
        ("b/parts=2/fail=1", 1): "failed",
        ("item-error/parts=1", 0): "failed",
    }
    assert (tally.parts, tally.files, tally.failed) == (6, 3, 2)
    assert tally.audio_s == pytest.approx(5.0)


def test_extraction_goes_on_while_the_engine_is_busy_and_waits_when_its_bytes_are_full(
    tmp_path: Path,
):
    max_buffered_features_mb = 0.02
    config = scripted_job(
        tmp_path,
        transcribe={"slots": 2},
        extract={"max_buffered_features_mb": max_buffered_features_mb},
    )
    engine = ScriptedEngine(held=True)
    given = []

    def packs() -> Iterator[pa.Table]:
        for number in range(100):
            given.append(number)
            yield packs_of(f"a{number}/parts=1")

    runner = threading.Thread(
        target=run_scripted, args=(config, packs()), kwargs={"engine": always(engine)}
    )
    runner.start()
    with engine.submitted:
        assert engine.submitted.wait_for(lambda: len(engine.requests) == 2, timeout=60)
    runner.join(timeout=1)
    part_bytes = engine.requests[0].features.nbytes
    # One more has been extracted and waits for room, its file being the last one asked for.
    assert 10 < len(given) <= max_buffered_features_mb * MEBIBYTE / part_bytes + 1
    engine.release()
    runner.join(timeout=60)
    assert len(outcomes_by_part(config)) == 100
    assert engine.closed


@pytest.mark.long
def test_an_engine_error_ends_the_run_and_keeps_what_was_done(tmp_path: Path):
    config = scripted_job(tmp_path)
    names = [f"{number}/parts=1" for number in range(20)]
    with pytest.raises(EngineError, match="device is lost"):
        run_scripted(config, [*map(packs_of, names), packs_of("engine-error/parts=1")])
    # Of what had not waited long, too; at most 15 parts are in flight with the one that fails.
    assert len(outcomes_by_part(config)) >= 20 - 15
    before = threading.active_count()
    with pytest.raises(EngineError, match="no device"):
        run_scripted(config, [packs_of("a/parts=1")], engine=broken_engine)
    with pytest.raises(CheckpointError, match="scripted"):
        run_scripted(config, [packs_of("a")], extractor="tests.support.extractors:make_unusable")
    assert threading.active_count() <= before + 1


def test_a_run_that_breaks_off_does_not_wait_for_the_engine(tmp_path: Path):
    let_go = threading.Event()

    class Busy(ScriptedEngine):
        def close(self) -> None:
            let_go.wait(60)
            super().close()

    def interrupted() -> Iterator[pa.Table]:
        yield packs_of("a/parts=1")
        raise KeyboardInterrupt

    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_scripted(scripted_job(tmp_path), interrupted(), engine=always(Busy(held=True)))
    assert time.monotonic() - started_s < 30
    # Python waits for such threads when it ends.
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("transcribe") and not thread.daemon
    ]
    let_go.set()


def test_a_committer_that_fails_ends_the_run(tmp_path: Path):
    config = scripted_job(tmp_path / "job")
    (tmp_path / "in the way").write_text("a file where the output folder should be")
    blocked = Committer(
        store=OutputStore(str(tmp_path / "in the way")), run_id="r", model="m", model_revision="v",
    )  # fmt: skip
    with pytest.raises(Exception, match="in the way"):
        run_scripted(config, [packs_of("a/parts=1")], committer=blocked)


def test_the_first_result_is_committed_at_once_and_others_together_in_time():
    commits: list[list[str]] = []
    now_s = [100.0]
    buffer = CommitBuffer(commits.append, max_bytes=100, max_age_s=4, clock=lambda: now_s[0])
    for name in "abc":
        buffer.add(name, 1)
    assert commits == [["a"]]
    waited: list[float] = []
    for _ in range(4):
        since_s = now_s[0]
        buffer.add("x", 1)
        while len(commits) == 1 + len(waited):
            now_s[0] += 0.5
            buffer.poll()
        waited.append(now_s[0] - since_s)
    assert waited == [1, 2, 4, 4]  # never longer than it may be
    buffer.add("y", 100)
    assert commits[-1] == ["y"]
    buffer.poll()
    buffer.add("z", 1)
    buffer.flush()
    buffer.flush()
    assert commits[6:] == [["z"]]


@pytest.mark.long
def test_a_commit_waits_for_its_store_as_long_as_patience_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now_s = [0.0]
    waits_s: list[float] = []

    def sleep(wait_s: float) -> None:
        waits_s.append(wait_s)
        now_s[0] += wait_s

    # Only waits take time, so that a busy machine has as many tries.
    clock = SimpleNamespace(monotonic=lambda: now_s[0], sleep=sleep)
    monkeypatch.setattr(committing, "time", clock)
    fast = RetryPolicy(attempts=2, first_wait_s=0.01)
    with s3_server() as s3, environment(s3.environment):
        s3.make_bucket("out")
        with faulty_store(s3.endpoint_url, {"slow_down": 1.0}, seed=1) as faulty:
            options = StoreOptions(endpoint_url=faulty.endpoint_url, policy=fast)
            store = OutputStore("s3://out/run", options=options)
            rows = results(part("a", 0, texts=["x"]))
            committer = Committer(
                store=store, run_id="r", model="m", model_revision="1", patience_s=25.0
            )
            with pytest.raises(FetchError, match="SlowDown"):
                committer(rows)
            assert waits_s == [10, 10, 5]
            assert faulty.injected["slow_down"] == 4 * fast.attempts
            with pytest.raises(FetchError, match="SlowDown"):
                committer(rows, leaving=lambda: True)
            assert faulty.injected["slow_down"] == 5 * fast.attempts
            assert len(waits_s) == 3

            def recover(wait_s: float) -> None:
                sleep(wait_s)
                faulty.rates.clear()

            clock.sleep = recover
            done = committer(rows)
            assert len(store.commit_names()) == 1
            assert waits_s[3:] == [10]
            assert done.spent.commit_s > 0.2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_commit_to_a_full_disk_does_not_wait(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    committer = Committer(
        store=OutputStore(str(tmp_path)), run_id="r", model="m", model_revision="1", patience_s=600
    )
    with pytest.raises(FetchError, match=r"no space left.*run the same command again") as caught:
        committer(results(part("a", 0, texts=["x"])))
    assert caught.value.retryable  # code 3
    monkeypatch.undo()
    committer(results(part("a", 0, texts=["x"])))
    assert committer.store.commit_names()


def test_a_run_in_which_all_fails_alike_starts_nothing_more(tmp_path: Path):
    config = scripted_job(tmp_path)
    given = []

    def packs() -> Iterator[pa.Table]:
        for number in range(500):
            given.append(number)
            yield packs_of(f"a{number}/denied=0")

    tally = run_scripted(config, packs(), files=500)
    assert ENOUGH_ALIKE <= tally.files == len(outcomes_by_part(config)) < 500
    assert len(given) < 500
    alike = tally.alike
    assert alike is not None
    assert (alike.kind, alike.count) == ("access_denied", tally.files)
    assert "403 scripted" in alike.message


@pytest.mark.long
@pytest.mark.parametrize("other", ["z/parts=1", "z/fail=0", "z/hang_up=0", "z/parts=2/denied=1"])
def test_a_run_in_which_one_recording_does_otherwise_goes_on(tmp_path: Path, other: str):
    config = scripted_job(tmp_path)
    packs = [packs_of(other), *(packs_of(f"a{number}/denied=0") for number in range(40))]
    tally = run_scripted(config, packs, files=41)
    assert (tally.files, tally.alike) == (41, None)


def test_failures_of_the_files_themselves_end_no_run(tmp_path: Path):
    config = scripted_job(tmp_path)
    tally = run_scripted(config, [packs_of(f"a{n}/fail=0") for n in range(40)], files=40)
    assert (tally.files, tally.alike) == (40, None)
