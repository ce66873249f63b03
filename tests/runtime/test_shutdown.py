import io
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from corpus_asr.runtime import local
from corpus_asr.runtime import shutdown as stopping
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.shutdown import (
    DRAIN_S,
    GRACE_S,
    RunStoppedError,
    ended_by_signals,
    stoppable,
)
from tests.support.engines import (
    ScriptedEngine,
    always,
    outcomes_by_part,
    run_scripted,
    scripted_job,
)
from tests.support.killing import PAUSE, killable_job, tables_of
from tests.support.tables import packs_of


def ordered_to_end() -> None:
    with stoppable(lambda: 3) as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        pytest.fail("a second signal ends at once")


@pytest.mark.parametrize(
    ("number", "seconds", "words"),
    [
        (signal.SIGINT, DRAIN_S, "gets 10 min to finish and is committed; a second Ctrl-C stops"),
        (signal.SIGTERM, GRACE_S, "gets 20 s to finish and is committed; a second signal stops"),
    ],
)
def test_what_is_in_progress_gets_longer_after_ctrl_c_than_after_a_scheduler(
    number: signal.Signals, seconds: float, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    left = iter((1, 0))
    with stoppable(lambda: next(left)) as stop:
        stream = io.StringIO()
        progress = Progress(total_files=3, stream=stream)
        progress.read_left_s = lambda: stop.left_s
        assert stop.left_s is None
        with progress.shown():
            assert "stopping" not in stream.getvalue()
            signal.raise_signal(number)
            assert stop.left_s == pytest.approx(seconds, abs=5)
            next(left)
    last = stream.getvalue().splitlines()[-1]
    assert re.search(r"; stopping: 0:(09:5|10:0|00:1|00:2)\d for what is in progress$", last)
    assert words in capfd.readouterr().err


def bereft_of_helpers() -> None:
    with stoppable(lambda: 1):
        signal.raise_signal(signal.SIGINT)
        raise OSError("a pipe is closed")


def interrupted_while_draining() -> None:
    with stoppable(lambda: 3, at=time.monotonic()) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        assert not stop.expired
        signal.raise_signal(signal.SIGINT)
        pytest.fail("a second signal ends at once")


@pytest.mark.parametrize(
    ("work", "exit_code", "left"),
    [
        (ordered_to_end, 143, "stopped by SIGTERM: 3 recordings remaining"),
        (bereft_of_helpers, 130, "stopped by SIGINT: 1 recording remaining"),
        (interrupted_while_draining, 130, "stopped by SIGINT: 3 recordings remaining"),
    ],
)
def test_a_signal_is_a_wish_first_and_an_order_then(
    work: Callable[[], None], exit_code: int, left: str
):
    with pytest.raises(RunStoppedError, match=left) as caught:
        work()
    assert caught.value.exit_code == exit_code
    assert isinstance(caught.value.__cause__, OSError) == (work is bereft_of_helpers)


def test_signals_after_the_work_or_ignored_before_it_end_nothing():
    before = signal.getsignal(signal.SIGINT)
    with stoppable(lambda: 0):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable(lambda: 1) as stop:
            signal.raise_signal(signal.SIGINT)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_without_a_signal_passes():
    for at in (None, time.monotonic() - DRAIN_S):  # also when the time is over
        with pytest.raises(OSError, match="disk"), stoppable(lambda: 1, at=at):
            raise OSError("disk")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_outside_the_work_ends_at_once(number: signal.Signals):
    signal.signal(number, signal.SIG_DFL)  # the tests themselves may run below nohup
    with pytest.raises(RunStoppedError, match=number.name) as caught, ended_by_signals():
        signal.raise_signal(number)
    assert caught.value.exit_code == 128 + number
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        with ended_by_signals():
            signal.raise_signal(number)
    finally:
        signal.signal(number, signal.SIG_DFL)


def packs_around(engine: ScriptedEngine, then: Callable[[], None]) -> Iterator[pa.Table]:
    """Yield a thousand packs; once the engine has a part, something happens."""
    yield packs_of("silent/parts=1/silent=0", "held/parts=1")
    with engine.submitted:
        engine.submitted.wait_for(lambda: engine.requests, timeout=60)
    then()
    for number in range(1000):
        yield packs_of(f"{number}/parts=1")


def test_nobody_waits_for_an_engine_beyond_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stopping, "DRAIN_S", 0.5)
    config = scripted_job(tmp_path)
    engine = ScriptedEngine(held=True)
    packs = packs_around(engine, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(RunStoppedError, match="9 recordings remaining"):
        run_scripted(config, packs, engine=always(engine), files=10)
    assert set(outcomes_by_part(config)) == {("silent/parts=1/silent=0", 0)}


@pytest.mark.long
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGHUP,
        *(
            pytest.param(number, marks=pytest.mark.slow)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        ),
    ],
)
def test_a_signal_to_everything_of_a_run_keeps_what_is_being_decoded(
    tmp_path: Path, number: signal.Signals
):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run below nohup
    job = killable_job(tmp_path, files=24, environment={PAUSE: "0.2"})
    with job.started() as process:
        job.wait_for_commits(process, 2)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + number, said
    assert f"stopped by {number.name}" in said
    assert "run the same command again" in said
    assert not list((tmp_path / "output" / "_run").glob("lock*"))
    done = sum(row["last_part"] for row in tables_of(job.config)["outcomes"])
    assert 0 < done < 24
    assert f"{24 - done} recordings remaining" in said
    job.environment[PAUSE] = "0"
    code, said = job.finish()
    assert code == 0, said
    assert len(tables_of(job.config)["recordings"]) == 24


def test_when_the_time_is_over_nothing_new_is_begun_and_that_is_no_error():
    for left_s, requested, expired in (
        (60, False, False),
        (0, True, False),
        (-DRAIN_S, True, True),
    ):
        with stoppable(lambda: 3, at=time.monotonic() + left_s) as stop:
            assert (stop.requested, stop.expired, stop.out_of_time) == (requested, expired, expired)
            if expired:  # what outlasts the drain is left without an error
                raise KeyboardInterrupt


@pytest.mark.parametrize("held", [False, True])
def test_a_run_whose_time_is_over_commits_what_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
):
    """Or leaves it, if it takes longer than the drain."""
    now_s = [0.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(local, "POLL_S", 0.05)
    config = scripted_job(tmp_path)
    engine = ScriptedEngine(held=True)

    def time_passes() -> None:
        if held:
            time.sleep(0.5)  # what is silent is on its way to be committed: there is no drain
        now_s[0] = 1.0 + (DRAIN_S if held else 0.0)
        if not held:
            engine.release()

    packs = packs_around(engine, time_passes)
    run_scripted(config, packs, engine=always(engine), files=1002, stop_at=1.0)
    names = {name for name, _ in outcomes_by_part(config)}
    assert "silent/parts=1/silent=0" in names
    assert ("held/parts=1" in names) is not held
    assert len(names) < 1000
