import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CheckpointError, EngineError
from corpus_asr.runtime.commit import Committer, Tally
from corpus_asr.runtime.local import CommitBuffer, run_local
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.units import MEBIBYTE
from tests.support.engines import (
    EXTRACTOR,
    ScriptedEngine,
    always,
    broken_engine,
    committer_of,
    outcomes_by_part,
    scripted_engine,
    scripted_job,
)
from tests.support.tables import packs_of, part, results


def run(
    config: RunConfig,
    packs: list[pa.Table] | Iterator[pa.Table],
    *,
    engine=scripted_engine,
    workers: int = 1,
    extractor: str = EXTRACTOR,
) -> Tally:
    resources = resolve_resources(config, (this_machine(),), num_packs=8)
    progress = Progress(total_files=1, total_bytes=0, stream=None)
    run_local(
        config,
        packs,
        committer_of(config),
        resources=replace(resources, extract_workers=workers),
        progress=progress,
        engine_factory=engine,
        extractor=extractor,
    )
    return progress.tally


def test_every_part_is_committed_and_counted(tmp_path: Path):
    config = scripted_job(tmp_path)
    packs = [packs_of("a/parts=3/silent=1", "b/parts=2/fail=1"), packs_of("item-error/parts=1")]
    tally = run(config, packs, workers=2)
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
    ahead_mb = 0.02
    config = scripted_job(tmp_path, transcribe={"slots": 2}, extract={"ahead_mb": ahead_mb})
    engine = ScriptedEngine(held=True)
    given = []

    def packs() -> Iterator[pa.Table]:
        for number in range(100):
            given.append(number)
            yield packs_of(f"a{number}/parts=1")

    runner = threading.Thread(target=run, args=(config, packs()), kwargs={"engine": always(engine)})
    runner.start()
    with engine.submitted:
        assert engine.submitted.wait_for(lambda: len(engine.requests) == 2, timeout=60)
    runner.join(timeout=1)
    part_bytes = engine.requests[0].features.nbytes
    # One more has been extracted and waits for room, its file being the last one asked for.
    assert 10 < len(given) <= ahead_mb * MEBIBYTE / part_bytes + 1
    engine.release()
    runner.join(timeout=60)
    assert len(outcomes_by_part(config)) == 100
    assert engine.closed


def test_a_part_larger_than_all_room_goes_through_alone(tmp_path: Path):
    config = scripted_job(tmp_path, extract={"ahead_mb": 1e-6})
    assert run(config, [packs_of(f"{number}/parts=2") for number in range(5)]).parts == 10


def test_an_engine_error_ends_the_run_and_keeps_what_was_committed(tmp_path: Path):
    config = scripted_job(tmp_path)
    with pytest.raises(EngineError, match="device is lost"):
        run(config, [packs_of("engine-error/parts=1", *(f"{i}/parts=9" for i in range(20)))])
    before = threading.active_count()
    with pytest.raises(EngineError, match="no device"):
        run(config, [packs_of("a/parts=1")], engine=broken_engine)
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
        run(scripted_job(tmp_path), interrupted(), engine=always(Busy(held=True)))
    assert time.monotonic() - started_s < 30
    # Python waits for such threads when it ends.
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("transcribe") and not thread.daemon
    ]
    let_go.set()


def test_an_unusable_checkpoint_ends_the_run(tmp_path: Path):
    config = scripted_job(tmp_path)
    with pytest.raises(CheckpointError, match="scripted"):
        run(config, [packs_of("a")], extractor="tests.support.extractors:make_unusable")


def test_a_committer_that_fails_ends_the_run(tmp_path: Path):
    config = scripted_job(tmp_path / "job")
    (tmp_path / "in the way").write_text("a file where the output folder should be")
    resources = resolve_resources(config, (this_machine(),), num_packs=1)
    blocked = Committer(
        uri=str(tmp_path / "in the way"), endpoint_url=None, run_id="r", model="m",
        model_revision="v",
    )  # fmt: skip
    with pytest.raises(Exception, match="in the way"):
        run_local(
            config,
            [packs_of("a/parts=1")],
            blocked,
            resources=resources,
            progress=Progress(total_files=1, total_bytes=0, stream=None),
            engine_factory=scripted_engine,
            extractor=EXTRACTOR,
        )


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_small_results_are_committed_together_and_in_order():
    commits: list[pa.Table] = []
    buffer = CommitBuffer(commits.append, min_bytes=1 << 20, max_age_s=10, clock=Clock())
    for index in range(3):
        buffer.add(results(part("r", index, texts=[])))
    assert commits == []
    buffer.flush()
    buffer.flush()
    assert [table.column("part").to_pylist() for table in commits] == [[0, 1, 2]]


def test_a_large_result_is_committed_at_once():
    commits: list[pa.Table] = []
    buffer = CommitBuffer(commits.append, min_bytes=1000, max_age_s=10, clock=Clock())
    buffer.add(results(part("r", 0, texts=None, error_message="x" * 2000)))
    assert len(commits) == 1


def test_nothing_waits_longer_than_its_age():
    commits: list[pa.Table] = []
    clock = Clock()
    buffer = CommitBuffer(commits.append, min_bytes=1 << 20, max_age_s=10, clock=clock)
    buffer.add(results(part("r", 0, texts=[])))
    clock.now_s += 9
    buffer.poll()
    assert commits == []
    clock.now_s += 1
    buffer.poll()
    assert len(commits) == 1
