"""Workers take turns, and one that fails loses only its own."""

import os
import time
from dataclasses import replace

import pytest

from corpus_asr.benchmark.orders import Case, Order
from corpus_asr.benchmark.rounds import Worker, environment, measure
from tests.benchmark.runners import TURNS, order


def silent(line: str) -> None:
    """Tell nobody."""


def test_turns_alternate_and_the_first_round_does_not_count(tmp_path):
    orders = [order("Works", tmp_path, dtype=name) for name in "ABC"]
    rows = measure(orders, runs=2, tell=silent, settle_s=0)
    assert (tmp_path / TURNS).read_text().split() == list("ABCABCABC")
    assert [[run["total_s"] for run in row.runs] for row in rows] == [[2.0, 3.0]] * 3
    assert [row.failed for row in rows] == [None] * 3


def test_each_engine_has_a_process_of_its_own_and_the_same_threads(tmp_path):
    orders = [order("Works", tmp_path, dtype=name) for name in "AB"]
    rows = measure(orders, runs=2, tell=silent, settle_s=0)
    processes = [{run["pid"] for run in row.runs} for row in rows]
    assert [len(found) for found in processes] == [1, 1]
    assert not processes[0] & processes[1]
    assert os.getpid() not in processes[0] | processes[1]
    assert {run["threads"] for row in rows for run in row.runs} == {"1"}
    assert {run["cores"] for row in rows for run in row.runs} == {1}
    assert all(run["peak_memory_mib"] > 1 for row in rows for run in row.runs)


def test_a_waiting_worker_burns_no_cpu(tmp_path):
    _, one = order("Works", tmp_path)
    with Worker(one) as worker:
        before = worker.run()
        time.sleep(0.5)
        after = worker.run()
    assert before is not None
    assert after is not None
    assert after["cpu_s"] - before["cpu_s"] < 0.1


def test_what_an_engine_prints_is_not_taken_for_a_reply(tmp_path):
    (row,) = measure([order("Chatters", tmp_path)], runs=1, tell=silent, settle_s=0)
    assert row.failed is None
    assert len(row.runs) == 1


@pytest.mark.parametrize(
    ("runner", "counted", "reason"),
    [
        ("CannotLoad", 0, "ValueError: no such weights"),
        ("FailsInRoundTwo", 1, "MemoryError: too much"),
        ("Dies", 0, "its process ended with -9 (out of memory?); its last words: malloc()"),
        ("Unheard", 0, "AttributeError"),
    ],
)
def test_one_that_fails_says_why_and_the_others_go_on(tmp_path, runner, counted, reason):
    told: list[str] = []
    orders = [order(runner, tmp_path, dtype="A"), order("Works", tmp_path, dtype="B")]
    failed, other = measure(orders, runs=2, tell=told.append, settle_s=0)
    assert failed.failed is not None
    assert failed.failed.startswith(reason)
    assert "\n" not in failed.failed
    assert len(failed.runs) == counted
    assert other.failed is None
    assert len(other.runs) == 2
    assert any(failed.failed in line for line in told)


def test_a_worker_sees_its_own_gpu_alone(tmp_path):
    for device, inherited, expected in (
        ("cpu", None, None),
        ("cpu", "3", "3"),
        ("cuda:0", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:1", "4,GPU-77", "GPU-77"),
    ):
        one = replace(order("Works", tmp_path)[1], device=device)
        given = {} if inherited is None else {"CUDA_VISIBLE_DEVICES": inherited}
        found = environment(one, {**given, "PYTHONPATH": "elsewhere"})
        assert found.get("CUDA_VISIBLE_DEVICES") == expected, (device, inherited)
        assert found["PYTHONPATH"].endswith(f"{os.pathsep}elsewhere")
        assert found["HF_HUB_OFFLINE"] == "1"


def test_an_order_survives_its_journey(tmp_path):
    case, one = order("Works", tmp_path)
    assert isinstance(case, Case)
    assert Order.from_json(one.to_json()) == one
