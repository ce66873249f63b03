"""Windows in threads of their own: as a plain loop would, and nothing left behind."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from corpus_asr.families.layers.packed import run_per_sample

# A barrier that is never reached must fail a test, not hang it.
PATIENCE_S = 20.0


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    yield from with_threads(request.param)


@pytest.fixture
def four_threads() -> Iterator[int]:
    yield from with_threads(4)


def with_threads(count: int) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    """What a thread started now computes on."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9])
def test_results_come_in_the_order_of_the_items(threads: int, count: int) -> None:
    items = [torch.full((2,), float(number)) for number in range(count)]
    found = run_per_sample(lambda item: item.sum() * 2, items)
    assert [int(value) for value in found] == [4 * number for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_number_of_threads_is_as_before_for_this_thread_and_for_later_ones(
    threads: int, count: int
) -> None:
    run_per_sample(lambda item: torch.ones(item).sum(), range(1, count + 1))
    assert torch.get_num_threads() == threads
    assert threads_of_a_new_thread() == threads


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [4]),
        (2, [2, 2]),
        (3, [1, 1, 1]),
        (4, [1, 1, 1, 1]),
        (5, [1, 1, 1, 1, 4]),
        (6, [1, 1, 1, 1, 2, 2]),
        (9, [1] * 8 + [4]),
    ],
)
def test_each_item_gets_its_share_of_the_threads(count: int, expected: list[int]) -> None:
    assert run_per_sample(lambda _: torch.get_num_threads(), range(count)) == expected


@pytest.mark.usefixtures("four_threads")
def test_as_many_items_run_at_once_as_there_are_threads() -> None:
    together = threading.Barrier(4, timeout=PATIENCE_S)
    names = run_per_sample(
        lambda _: (together.wait(), threading.current_thread().name)[1], range(8)
    )
    assert all(name.startswith("window") for name in names)
    assert len(set(names[:4])) == 4


@pytest.mark.usefixtures("four_threads")
def test_a_thread_that_is_done_takes_the_next() -> None:
    others = threading.Semaphore(0)

    def work(number: int) -> int:
        if number == 9:
            for _ in range(7):
                assert others.acquire(timeout=PATIENCE_S), "the others waited for the longest"
        else:
            others.release()
        return number

    items = [3, 2, 8, 4, 1, 7, 6, 9]
    assert run_per_sample(work, items, size=lambda number: number) == items


def test_items_are_begun_by_their_size() -> None:
    begun: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run_per_sample(begun.append, [3, 9, 2, 8], size=lambda number: number)
    torch.set_num_threads(before)
    assert begun == [9, 8, 3, 2]


def test_it_is_in_inference_mode_whatever_the_caller_is_in(threads: int) -> None:
    weight = torch.ones(3, requires_grad=True)
    for count in (1, 4):
        for value in run_per_sample(lambda number: weight * number, range(count)):
            assert value.is_inference()
            assert not value.requires_grad
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_exception_arrives_as_it_is_and_leaves_nothing_behind(threads: int, count: int) -> None:
    def fail(number: int) -> int:
        if number == count - 1:
            raise KeyError(f"window {number}")
        return number

    with pytest.raises(KeyError, match=f"window {count - 1}"):
        run_per_sample(fail, range(count))
    assert torch.get_num_threads() == threads
    assert threads_of_a_new_thread() == threads
    assert not [t for t in threading.enumerate() if t.name.startswith("window")]
    assert not torch.is_inference_mode_enabled()


@pytest.mark.usefixtures("four_threads")
def test_of_several_exceptions_the_first_item_s_arrives_once_all_are_done() -> None:
    done: list[int] = []
    together = threading.Barrier(4, timeout=PATIENCE_S)

    def fail(number: int) -> None:
        together.wait()
        done.append(number)
        raise ValueError(f"window {number}")

    with pytest.raises(ValueError, match="window 0"):
        run_per_sample(fail, range(4))
    assert sorted(done) == [0, 1, 2, 3]


@pytest.mark.usefixtures("four_threads")
def test_threads_that_others_start_meanwhile_get_all_and_take_none_from_the_windows() -> None:
    """Another engine of the same process may start, or be encoding, at any time."""
    all_begun = threading.Barrier(3, timeout=PATIENCE_S)
    looked = threading.Event()
    found: list[int] = []

    def look() -> None:
        all_begun.wait()
        for _ in range(100):  # until the caller has put back what it found
            found[:] = [threads_of_a_new_thread()]
            if found == [4]:
                break
            time.sleep(0.01)
        looked.set()

    def work(_: int) -> int:
        all_begun.wait()
        assert looked.wait(PATIENCE_S)
        torch.ones(100_000).sum()
        return torch.get_num_threads()

    other = threading.Thread(target=look)
    other.start()
    assert run_per_sample(work, range(2)) == [2, 2]
    other.join()
    assert found == [4]
