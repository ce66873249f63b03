"""The CUDA path on a pretended GPU: the CPU's results, no wait where there need be none.

What a real one would add, kernels, float16 and timing, is not looked at.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.decoding import batch as batch_module
from corpus_asr.decoding import device
from corpus_asr.decoding.batch import SlotBatch, encode_windows
from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.jobs import Job, Result, Search, TokenRules
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.layers import blocks
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.decoding.test_kernels import interpreted as interpreted
from tests.support.device import pretended_gpu
from tests.support.device_state import Gpu
from tests.support.device_tensors import run_as_one
from tests.support.searches import END, KINDS, small_whisper
from tests.support.searches import ask as ask_of_kind
from tests.support.slots import assert_all_same, run_jobs

# NumPy, by which kernels are interpreted, warns of what a GPU is silent about.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

# Two seconds, so that a window of one is short.
FRAMES = 200
ask = partial(ask_of_kind, frames=FRAMES)
ENDLESS = TokenRules(end=END, is_endless=True)


def tasks_of(kinds: Sequence[str], jobs: int) -> list[list[Job]]:
    return [
        [ask(kinds[(number + 5 * n) % len(kinds)], number) for n in range(jobs)]
        for number in range(len(kinds))
    ]


def run(model: SlotModel, tasks: list[list[Job]], *, slots: int, every: int = 3) -> Any:
    scheduler = SlotScheduler(model, slots, encode_batch=4, check_every=every)
    return run_jobs(scheduler, tasks), scheduler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    small_whisper(folder, seed=3, max_source_positions=FRAMES // 2)
    return folder


def load(folder: Path, where: str = "cpu") -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder, device=where)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[[list[list[Job]]], list[list[Result]]]:
    """What tasks find on the CPU."""
    model = load(folder).slot_model()
    return lambda tasks: run(model, tasks, slots=8)[0]


@pytest.fixture(autouse=True)
def _few_warm_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaRecorder, "warm_ups", 2)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretended_gpu() as gpu:
        yield gpu


@pytest.mark.parametrize(
    ("slots", "device_name"),
    [
        (8, "cuda"),
        pytest.param(1, "cuda", marks=pytest.mark.slow),
        pytest.param(3, "cuda", marks=pytest.mark.slow),
        pytest.param(8, "cuda:1", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_job_gives_what_a_cpu_gives(
    folder: Path, alone: Any, slots: int, device_name: str
) -> None:
    tasks = tasks_of([*KINDS], jobs=2)
    expected = alone(tasks)
    with pretended_gpu(devices=2) as gpu:
        found, _ = run(load(folder, device_name).slot_model(), tasks, slots=slots)
        assert_all_same(found, expected)
        assert gpu.captures > 0
        assert gpu.replays > gpu.captures


@pytest.mark.slow
def test_windows_in_8_bits_give_the_same_in_any_slots(folder: Path, alone: Any, gpu: Gpu) -> None:
    # Jobs move from slot to slot, with their scales.
    tasks = tasks_of(["greedy", "beams", "align"], jobs=2)
    model = load(folder, "cuda").slot_model()
    model.float8_windows = True
    found, _ = run(model, tasks, slots=2)
    assert_all_same(run(model, tasks, slots=3)[0], found)
    exact = alone(tasks)
    first = [[one.logprobs[0] for results in both for one in results] for both in (found, exact)]
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], abs=0.2)
    keys = model.new_state(3).layers[0].cross_keys
    assert keys.element_size() == model.size.window_element_bytes == 1


@pytest.mark.parametrize("temperature", [0.0, pytest.param(0.7, marks=pytest.mark.slow)])
def test_drafts_give_what_a_cpu_gives_without(
    folder: Path, alone: Any, tmp_path: Path, temperature: float
) -> None:
    plain = [ask("greedy", number) for number in range(5)]
    searches = [replace(one, search=Search(temperature=temperature)) for one in plain]
    expected = alone([[one] for one in searches])
    small_whisper(tmp_path, seed=2, d_model=8, layers=1, max_source_positions=FRAMES // 2)
    with pretended_gpu():
        search = Search(
            temperature=temperature,
            assistant=load(tmp_path, "cuda").slot_model(),
            num_draft_tokens=3,
        )
        tasks: list[list[Job]] = [[replace(one, search=search)] for one in plain]
        found, _ = run(load(folder, "cuda").slot_model(), tasks, slots=3)
        assert_all_same(found, expected)


def test_an_engine_with_kernels_gives_what_a_cpu_gives(
    folder: Path, alone: Any, gpu: Gpu, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: Counter[str] = Counter()

    def interpret(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            used[name] += 1
            return run_as_one(getattr(interpreted, name), name, arguments, {})

        return run

    monkeypatch.setattr(blocks, "_ATTEND_ONE", interpret("attend_one"))
    monkeypatch.setattr(batch_module, "CHOOSE_NEXT", interpret("choose_next"))
    # Each program takes milliseconds: as few as can be.
    monkeypatch.setattr(interpreted, "_AT_ONCE", 128)
    monkeypatch.setattr(CudaRecorder, "warm_ups", 1)
    tasks: list[list[Job]] = [
        [replace(ask("sampled grammar", 5), max_new_tokens=4, num_frames=100)]
    ]
    found, _ = run(load(folder, "cuda").slot_model(), tasks, slots=1, every=1)
    assert_all_same(found, alone(tasks))
    assert used["attend_one"] == 4 * used["choose_next"] > 0
    assert gpu.replays > 0


@pytest.mark.slow
def test_reproducible_windows_are_computed_in_batches_that_others_do_not_change(
    folder: Path, alone: Any, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, set[int]] = {"encode": set(), "prefill": set(), "step": set()}
    model = load(folder, "cuda").slot_model()
    for name, argument in (("encode", 0), ("prefill", 2), ("step", 1)):
        method = getattr(model, name)

        def noted(*args: Any, name: str = name, at: int = argument, do: Any = method, **more: Any):
            sizes[name].add(len(args[at]))
            return do(*args, **more)

        monkeypatch.setattr(model, name, noted)
    kinds = ("greedy", "sampled", "beams", "greedy", "penalised", "align", "kept")
    tasks = tasks_of(kinds, jobs=2)
    scheduler = SlotScheduler(model, 6, encode_batch=4, check_every=3, reproducible=True)
    assert_all_same(run_jobs(scheduler, tasks), alone(tasks))
    assert sizes == {"encode": {4}, "prefill": {1}, "step": {6}}
    short = [[ask("short", number)] for number in range(3)]
    assert_all_same(run_jobs(scheduler, short), alone(short))
    assert sizes["encode"] == {1, 4}


def test_steps_look_no_further_than_the_longest_text(
    folder: Path, alone: Any, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if there were far more room: texts of 48 tokens pass through three lengths.
    monkeypatch.setattr(device, "_SHORTEST_REACH", 8)
    model = load(folder, "cuda").slot_model()
    reaches: list[int] = []
    step = model.step

    def noted(*args: Any, reach: int) -> Any:
        reaches.append(reach)
        return step(*args, reach=reach)

    monkeypatch.setattr(model, "step", noted)
    # The second text of a slot is shorter than the first.
    long, short = ask("watched", 1), ask("greedy", 0)
    tasks: list[list[Job]] = [[long, short], [short, long], [ask("beams", 2)]]
    found, _ = run(model, tasks, slots=3)
    assert_all_same(found, alone(tasks))
    assert set(reaches) >= {8, 16, 32}
    assert max(reaches) <= 48


def test_steps_recorded_before_the_first_short_window_are_recorded_anew(
    folder: Path, alone: Any, gpu: Gpu
) -> None:
    short: list[Job] = [replace(ask(kind, 7), num_frames=100) for kind in ("greedy", "align")]
    tasks: list[list[Job]] = [[ask("greedy", 3), *short]]
    found, _ = run(load(folder, "cuda").slot_model(), tasks, slots=1)
    assert_all_same(found, alone(tasks))
    assert (gpu.captures, gpu.replays > 2) == (2, True)


def test_windows_start_together_once_enough_slots_are_free(
    folder: Path, alone: Any, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    admit = SlotBatch.admit

    def noted(self: SlotBatch, slots: Sequence[int], jobs: Sequence[Job]) -> None:
        started.append(len(slots))
        admit(self, slots, jobs)

    monkeypatch.setattr(SlotBatch, "admit", noted)
    lengths = np.random.default_rng(0).integers(4, 16, 96)
    tasks: list[list[Job]] = [
        [replace(ask("greedy", n), rules=ENDLESS, max_new_tokens=int(length))]
        for n, length in enumerate(lengths)
    ]
    found, _ = run(load(folder, "cuda").slot_model(), tasks, slots=48, every=1)
    first, *others = started
    assert first == sum(others) == 48
    assert min(others) >= 3
    assert_all_same(found, alone(tasks))


def test_the_device_has_a_step_to_do_while_results_are_read(
    folder: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("request", "step", "collect"):
        method = getattr(SlotBatch, name)

        def noted(self: Any, *args: Any, name: str = name, do: Any = method, **more: Any) -> Any:
            done.append(name)
            return do(self, *args, **more)

        monkeypatch.setattr(SlotBatch, name, noted)
    tasks = [[ask("sampled", number)] for number in range(7)]
    run(load(folder, "cuda").slot_model(), tasks, slots=3)
    collected = [at for at, name in enumerate(done) if name == "collect"]
    assert len(collected) >= 3
    assert all(done[at - 2 : at] == ["request", "step"] for at in collected)


def test_the_next_windows_are_encoded_while_slots_decode(
    folder: Path, alone: Any, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    model = load(folder, "cuda").slot_model()
    for place, name in ((SlotBatch, "step"), (SlotBatch, "admit"), (model, "encode")):
        method = getattr(place, name)

        def noted(*args: Any, name: str = name, do: Any = method, **more: Any) -> Any:
            apart = gpu.current() is not gpu.default()
            done.append(f"{name} apart" if apart else name)
            return do(*args, **more)

        monkeypatch.setattr(place, name, noted)
    tasks: list[list[Job]] = [[ask("greedy", number)] for number in range(14)]
    found, _ = run(model, tasks, slots=3)
    assert_all_same(found, alone(tasks))
    first, *others = (at for at, name in enumerate(done) if name == "encode apart")
    assert first == 0
    assert len(others) >= 4
    # Half a batch at a time, when steps are queued: admissions find their windows encoded.
    assert [done[at - 1] for at in others] == ["step"] * len(others)
    assert "encode" not in done


# Most waits of one call of each of a batch's methods, by what it does.
WAITS = {
    "encode": 0, "fill": 0, "admit": 0, "step": 0, "look": 0, "ended": 1, "move": 0, "align": 0,
    "collect": 1,
}  # fmt: skip
LANES: dict[str, tuple[str, ...]] = {
    "plain": ("greedy", "sampled", "grammar", "watched"),
    "options": ("penalised", "narrowed", "nucleus", "greedy"),
    "words": ("align", "greedy", "timed", "timed"),
    "short windows": ("short", "greedy"),
    "phrases": ("phrases", "names", "greedy"),
    "beams": (
        "beams",
        "watched beams",
        "penalised beams",
        "short beams",
        "phrase beams",
    ),
}


@pytest.mark.parametrize("lane", LANES)
def test_the_host_waits_no_more_often_than_its_budget(
    folder: Path, gpu: Gpu, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()
    for kind in (SlotBatch, BeamBatch):
        for name in ("ended", "collect"):
            counted = _counting(calls, name, getattr(kind, name))
            monkeypatch.setattr(kind, name, counted)
    model = load(folder, "cuda").slot_model()
    gpu.waits.clear()
    kinds = LANES[lane]
    tasks: list[list[Job]] = [
        [ask(kinds[n % len(kinds)], n), ask(kinds[(n + 1) % len(kinds)], n)]
        for n in range(4 if lane == "beams" else 7)
    ]
    run(model, tasks, slots=6 if lane == "beams" else 4)
    # A capture waits for the device, once for each recorded step.
    waits = [wait for wait in gpu.waits if wait.operation != "torch.cuda.graph"]
    found = Counter(wait.place for wait in waits)
    over = {
        place: sorted({f"{w.kind} {w.operation} {w.trace[0]}" for w in waits if w.place == place})
        for place, count in found.items()
        if count > WAITS.get(place, 0) * calls[place]
    }
    assert over == {}


def _counting(calls: Counter[str], name: str, method: Any) -> Any:
    def counted(self: Any, *args: Any) -> Any:
        calls[name] += 1
        return method(self, *args)

    counted.__name__ = method.__name__
    return counted


# Operations that start kernels, of 2 layers. They may only fall: lower a number that does.
LAUNCHES = {
    "step": 101,
    "watched step": 122,
    "sampled step": 153,
    "penalised step": 138,
    "admit neighbors": 111,
    "admit scattered": 115,
    "fill by recordings": 2,
    "admit by a recording": 13,
    "align": 83,
    "time tokens": 356,
    "move": 25,
    "fill": 6,
    "encode": 28,
    "step of beams": 155,
    "watched step of beams": 179,
}


def test_nothing_starts_more_kernels_than_its_budget(folder: Path, gpu: Gpu) -> None:
    model = load(folder, "cuda").slot_model()
    found: dict[str, int] = {}

    def count(name: str, action: Callable[[], Any]) -> Any:
        with torch.inference_mode(), gpu.launches() as launches:
            result = action()
        found[name] = sum(launches.values())
        return result

    def batch_of(kind: str, count: int = 3) -> tuple[SlotBatch, list[Any]]:
        batch = SlotBatch(model, 6)
        jobs = [ask(kind, number) for number in range(count)]
        batch.fill(range(count), jobs, encode_windows(model, jobs))
        batch.admit(range(count), jobs)
        return batch, jobs

    batch, jobs = batch_of("grammar")
    encoded = count("encode", lambda: encode_windows(model, jobs))
    count("fill", lambda: batch.fill(range(3), jobs, encoded))
    count("admit neighbors", lambda: batch.admit(range(3), jobs))
    count("step", lambda: batch.step(3, sampled=False))
    batch.fill([0, 2, 4], jobs, encoded)
    count("admit scattered", lambda: batch.admit([0, 2, 4], jobs))
    count("move", lambda: batch.move(4, 1))
    recording = SlotBatch(model, 6, recorder=CudaRecorder(model.device))
    for _ in range(1 + CudaRecorder.warm_ups):
        recording.fill([0, 2, 4], jobs, encoded)
        recording.admit([0, 2, 4], jobs)
    count("fill by recordings", lambda: recording.fill([0, 2, 4], jobs, encoded))
    count("admit by a recording", lambda: recording.admit([0, 2, 4], jobs))
    count("align", lambda: batch.admit([0, 2, 3], [ask("align", 0)] * 3))
    count("time tokens", lambda: batch.admit([0, 2, 3], [ask("timed", 0)] * 3))
    batch, _ = batch_of("watched")
    count("watched step", lambda: batch.step(3, sampled=False))
    batch, _ = batch_of("sampled grammar")
    count("sampled step", lambda: batch.step(3, sampled=True))
    batch, _ = batch_of("penalised")
    count("penalised step", lambda: batch.step(3, sampled=False))
    for kind in ("", "watched "):
        beams, asked = BeamBatch(model, 2, 3), [ask(f"{kind}beams", n) for n in range(2)]
        beams.fill(range(2), asked, encode_windows(model, asked))
        beams.admit(range(2), asked)
        count(f"{kind}step of beams", partial(beams.step, 2, sampled=False))
    assert found == LAUNCHES


@pytest.mark.slow
def test_two_engines_never_capture_at_once(folder: Path) -> None:
    tasks = [[ask(kind, 3)] * 4 for kind in ("greedy", "sampled", "greedy")]
    with pretended_gpu(capture_s=0.02) as gpu:
        model = load(folder, "cuda").slot_model()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                run(model, tasks, slots=3)
            except BaseException as error:  # told by the test's own thread
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert gpu.captures >= 4
        assert gpu.overlaps == []
