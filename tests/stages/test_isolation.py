"""What a child process may do to the one that started it: cost an item, and no more."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.errors import CheckpointError, DecodeError, EngineError, FetchError
from corpus_asr.stages.isolation import IsolatedGenerator
from tests.support import isolated
from tests.support.forks import in_fork

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = "tests.support.isolated:make"


@pytest.fixture(scope="module")
def shared_child() -> Iterator[IsolatedGenerator]:
    generator = IsolatedGenerator(TARGET, init_kwargs={"answer": 42}, timeout_s=20)
    yield generator
    generator.close()


@contextmanager
def fresh_child(
    target: str = TARGET, *, timeout_s: float = 20, **init_kwargs: object
) -> Iterator[IsolatedGenerator]:
    generator = IsolatedGenerator(target, init_kwargs=init_kwargs, timeout_s=timeout_s)
    yield generator
    generator.close()


@pytest.fixture
def run(shared_child):
    """Run an item to its end, in a child that the tests share: each must leave it usable."""
    yield lambda name, argument=None: list(shared_child.run((name, argument)))
    assert list(shared_child.run(("count", 3))) == [0, 1, 2]


def pid_of(generator: IsolatedGenerator) -> int:
    [pid] = generator.run(("pid", None))
    return int(pid)


def gone(pid: int, *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            # A zombie counts as gone: its new parent has not come round to it yet.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_messages_come_in_order_and_whole_from_a_function_made_once(run, shared_child):
    assert run("count", 1000) == list(range(1000))
    assert run("count", 0) == []
    assert run("settings") == [{"answer": 42}]
    assert pid_of(shared_child) == pid_of(shared_child)
    for shape in ((0,), (1000,), (3, 1 << 20)):
        for index, array in enumerate(run("arrays", shape)):
            np.testing.assert_array_equal(array, np.full(shape, index, dtype=np.float32))


@pytest.mark.parametrize(
    "error", [isolated.decode_error(), isolated.fetch_error(), KeyError("a"), MemoryError()]
)
def test_exceptions_keep_their_types_and_attributes(run, shared_child, error):
    child = pid_of(shared_child)
    with pytest.raises(type(error)) as caught:
        run("raise", error)
    assert str(caught.value) == str(error)
    if isinstance(error, DecodeError | FetchError):
        assert (caught.value.uri, caught.value.kind) == (error.uri, error.kind)
        assert caught.value.retryable == error.retryable
    assert any("in _raise" in note for note in caught.value.__notes__)
    assert pid_of(shared_child) == child


def test_what_cannot_travel_is_an_error_that_keeps_its_words(run):
    for name, words in (
        ("raise_unpicklable", "UnpicklableError: a file came along"),
        ("raise_stubborn", "StubbornError: code 7"),
        ("yield_unpicklable", "lambda"),
    ):
        with pytest.raises(Exception, match=words):
            run(name)


def test_a_dying_child_costs_its_item_only_and_between_two_items_none(run, shared_child):
    for name, argument, kind, how in (
        ("kill", isolated.SEGFAULT, "decoder_crashed", "SIGSEGV"),
        ("read_null", None, "decoder_crashed", "SIGSEGV"),
        ("kill", int(signal.SIGKILL), "decoder_killed", "SIGKILL, perhaps for lack of memory"),
        ("kill", int(signal.SIGABRT), "decoder_crashed", "SIGABRT"),
        ("exit", 0, "decoder_crashed", "exit code 0"),
        ("exit", 77, "decoder_crashed", "exit code 77"),
    ):
        stream = shared_child.run((name, argument))
        assert next(stream) == 1
        with pytest.raises(DecodeError) as caught:
            next(stream)
        assert caught.value.kind == kind
        assert caught.value.retryable == (kind == "decoder_killed")
        assert how in str(caught.value)
        assert repr(name) in str(caught.value)  # names the item
        assert run("count", 3) == [0, 1, 2]
    child = pid_of(shared_child)
    os.kill(child, signal.SIGKILL)
    assert gone(child)
    assert run("count", 3) == [0, 1, 2]
    assert pid_of(shared_child) != child


def test_a_death_is_noticed_although_a_grandchild_keeps_the_pipe_open(run, shared_child):
    stream = shared_child.run(("leave_a_grandchild", None))
    grandchild = next(stream)
    try:
        with pytest.raises(DecodeError, match="exit code 5"):
            next(stream)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_silent_child_is_killed_after_its_time():
    """Also where native code hangs with Python's lock held."""
    with fresh_child(timeout_s=1.0) as generator:
        for doing in ("hang", "hang_with_the_lock_held"):
            child = pid_of(generator)
            started = time.monotonic()
            with pytest.raises(DecodeError, match=r"no progress for 1 s") as caught:
                list(generator.run((doing, None)))
            assert caught.value.kind == "decoder_timeout"
            assert 0.9 < time.monotonic() - started < 10
            assert gone(child)
        assert list(generator.run(("count", 2))) == [0, 1]


def test_a_child_that_was_frozen_from_outside_is_no_fault_of_its_item():
    with fresh_child(timeout_s=0.5) as generator:
        child = pid_of(generator)
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(DecodeError, match=r"died \(it was suspended") as caught:
            list(generator.run(("count", 2)))
        assert (caught.value.kind, caught.value.retryable) == ("decoder_killed", True)
        assert gone(child)
        assert list(generator.run(("count", 2))) == [0, 1]


def test_the_time_limit_is_for_each_message_and_not_for_the_consumer():
    with fresh_child(timeout_s=0.8) as generator:
        assert list(generator.run(("pause", 0.4))) == [0, 1, 2]
        received = []
        for message in generator.run(("count", 2)):
            time.sleep(0.0 if message else 1.0)
            received.append(message)
        assert received == [0, 1]


def test_a_consumer_that_stops_or_fails_leaves_nothing_out_of_step(run, shared_child):
    for name in ("count", "hang", "megabytes"):
        stream = shared_child.run((name, 100))
        next(stream)
        stream.close()
        assert run("count", 5) == [0, 1, 2, 3, 4], name
    with pytest.raises(ZeroDivisionError):
        [1 // message for message in shared_child.run(("count", 10))]
    assert run("count", 2) == [0, 1]


def test_two_items_at_once_are_refused(run, shared_child):
    first = shared_child.run(("count", 3))
    assert next(first) == 0
    with pytest.raises(RuntimeError, match="the decoder busy"):
        next(shared_child.run(("count", 3)))
    assert list(first) == [1, 2]


def test_what_the_child_prints_goes_to_the_parents_standard_error(capfd):
    with fresh_child() as generator:
        assert list(generator.run(("print", None))) == [1, 2]
    out, err = capfd.readouterr()
    assert out == ""
    for said in ("printed again", "written to descriptor 1", "an error message"):
        assert said in err


def test_the_child_waits_for_its_reader(shared_child):
    times = []
    for sent_at, _ in shared_child.run(("megabytes", 8)):
        times.append(sent_at)
        time.sleep(0.1)
    # Unchecked it would be done at once; each megabyte but the one under way awaits its reader.
    assert times[-1] - times[0] > 0.4


def test_the_child_has_one_thread_for_linear_algebra_and_no_torch(run):
    assert run("threads") == [1]
    (modules,) = run("modules")
    assert "corpus_asr.stages.isolation" in modules
    assert not {"torch", "ray", "transformers", "__mp_main__"} & set(modules)


def test_a_child_that_cannot_start_is_no_items_fault_and_says_why(monkeypatch):
    for maker, error, words in (
        ("isolated:fail_to_start", EngineError, "ValueError: no such model folder"),
        ("nowhere:make", EngineError, r"ModuleNotFoundError: .*tests\.support\.nowhere"),
        ("isolated:blame_an_item", EngineError, "FetchError: reading s3"),
        ("isolated:not_there", EngineError, "AttributeError: .*not_there"),
        ("isolated:crash_at_start", EngineError, "exit code 3"),
        ("isolated:refuse_to_start", CheckpointError, "refused on purpose"),
    ):
        with (
            fresh_child(f"tests.support.{maker}", timeout_s=9) as child,
            pytest.raises(error, match=words) as caught,
        ):
            list(child.run(1))
        cause = caught.value.__cause__
        assert cause is None or any("In the child" in note for note in cause.__notes__), maker
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with fresh_child() as child, pytest.raises(EngineError, match="FileNotFoundError"):
        list(child.run(("count", 1)))


def test_a_death_is_told_without_the_items_secrets(run):
    with pytest.raises(DecodeError, match=r"https://host/a\.mp3\?\[hidden\]") as caught:
        run("exit_at", "https://user:pass@host/a.mp3?sig=secret")
    assert not any(word in str(caught.value) for word in ("user", "pass", "secret"))


@pytest.mark.long
def test_a_child_that_is_killed_while_it_starts_is_started_again(tmp_path):
    for times in (2, 3):
        notes = tmp_path / f"{times}"
        target = "tests.support.isolated:killed_at_start"
        with fresh_child(target, timeout_s=9, notes=str(notes), times=times) as generator:
            if times == 2:
                assert list(generator.run("item")) == ["item"]
            else:  # there is an end to it
                with pytest.raises(EngineError, match="SIGKILL"):
                    list(generator.run("item"))
        assert notes.read_text() == "+++"


@pytest.mark.long
def test_closing_dropping_and_failing_leave_neither_child_nor_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    with fresh_child() as generator:
        generator.close()
        child = pid_of(generator)
        generator.close()
        generator.close()
        assert gone(child)
        assert list(generator.run(("count", 1))) == [0]
    dropped = IsolatedGenerator(TARGET, init_kwargs={}, timeout_s=20)
    child = pid_of(dropped)
    del dropped
    assert gone(child)
    for _ in range(3):
        with fresh_child() as generator, pytest.raises(DecodeError):
            list(generator.run(("exit", 1)))
    assert len(os.listdir("/proc/self/fd")) == before


# A script without a guard around its main part, as users write them.
SCRIPT = f"""
import signal
import sys
from corpus_asr.stages.isolation import IsolatedGenerator
# A shell starts what runs in the background with interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
generator = IsolatedGenerator({TARGET!r}, init_kwargs={{}}, timeout_s=60)
print(list(generator.run(("pid", None)))[0], flush=True)
for _ in generator.run((sys.argv[1], None)):
    print("hanging", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "doing"),
    [
        (signal.SIGKILL, "hang_with_the_lock_held"),
        (signal.SIGTERM, "hang"),
        (signal.SIGINT, "hang"),
    ],
)
def test_the_child_dies_with_its_parent(tmp_path, number, doing):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), doing],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout as said:
        child = int(said.readline())
        assert said.readline() == "hanging\n"
        assert not gone(child, within_s=0.2)
        parent.send_signal(number)
        parent.wait(20)
    assert gone(child)


@pytest.mark.long
def test_a_fork_is_refused_and_the_parents_child_lives_on():
    item = isolated.RecordingItem("hang", uri="s3://key:secret@bucket/talk.wav")
    with fresh_child(answer=1) as unused, fresh_child(answer=1) as generator:
        child = pid_of(generator)
        for one in (unused, generator):
            for use in (one.start, lambda one=one: list(one.run(item))):
                said = in_fork(use)
                assert said.startswith("ForkedError: decoding")
                assert f"made in process {os.getpid()}" in said
                assert "secret" not in said
            assert in_fork(one.close) == "None"
        assert pid_of(generator) == child


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "while it starts", "at work"])
def test_an_item_is_interrupted_at_any_time_and_the_next_one_is_not(when):
    with fresh_child() as generator:
        if when == "before":
            generator.start()
            generator.interrupt()
        timer = threading.Timer(0.01 if when == "while it starts" else 1.0, generator.interrupt)
        if when != "before":
            timer.start()
        with pytest.raises(DecodeError, match="its child process died"):
            list(generator.run(("hang", None)))
        timer.cancel()
        generator.close()
        assert list(generator.run(("count", 2))) == [0, 1]
