"""Room for what is extracted and not yet transcribed, and threads that end with their run."""

import threading
import time

import pytest

from corpus_asr.runtime.feed import Feed

LIMIT_S = 60.0


def test_who_takes_waits_for_room_and_something_too_large_goes_alone() -> None:
    feed = Feed(10)
    taken: list[int] = []

    def take() -> None:
        for amount in (6, 4, 1, 50):
            assert feed.take(amount)
            taken.append(amount)
            feed.wake()

    def wait_for(number: int) -> None:
        while len(taken) < number:
            assert feed.wait(LIMIT_S)

    thread = feed.start("take", take)
    wait_for(2)
    time.sleep(0.1)  # a third would have taken by then
    assert taken == [6, 4]
    feed.give_back(4)
    wait_for(3)
    for amount in (6, 1):
        assert taken == [6, 4, 1]
        feed.give_back(amount)
    wait_for(4)
    thread.join(LIMIT_S)
    assert feed.error is None


def test_nobody_waits_for_room_in_what_is_closed() -> None:
    feed = Feed(1)
    wanted: list[bool] = []
    assert feed.take(1)
    threads = [feed.start("take", lambda: wanted.append(feed.take(1))) for _ in range(3)]
    feed.close()
    for thread in threads:
        thread.join(LIMIT_S)
    assert wanted == [False, False, False]
    assert not feed.take(1)


@pytest.mark.parametrize("error", [ValueError("scripted"), KeyboardInterrupt()])
def test_what_ends_a_thread_wakes_the_caller(error: BaseException) -> None:
    feed = Feed(1)
    begin = threading.Event()

    def work() -> None:
        begin.wait(LIMIT_S)
        raise error

    thread = feed.start("work", work)
    assert thread.daemon
    assert not feed.wait(0.0)
    begin.set()
    assert feed.wait(LIMIT_S)
    assert feed.error is error
