"""What becomes of a worker whose GPU fails, on a pretended GPU: it is told from a bad recording."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from corpus_asr.activity import Activity
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding import slots as slots_module
from corpus_asr.decoding.batch import encode_windows
from corpus_asr.errors import EngineError
from corpus_asr.failure_kinds import NOT_A_NUMBER
from corpus_asr.runtime.workers import STUCK_LOOKS, StuckWatch
from corpus_asr.stages.transcribe import EngineSpec, TranscribeStage
from corpus_asr.transcription.engine import Engine
from tests.support.corpora import tiny_model
from tests.support.device import pretended_gpu
from tests.support.device_state import Gpu
from tests.support.tables import extracted, run_config

MEL = 80
SPEC = EngineSpec(config=run_config("/in", "/out"), device="cuda")


def part() -> pa.Table:
    features = np.zeros((102, MEL), np.float16)
    return extracted(num_mel_bins=MEL, features=features, pad_value=-1.5)


class Faults:
    """What the GPU does with the next windows."""

    def __init__(self) -> None:
        self.of_window: Callable[[torch.Tensor], torch.Tensor] = lambda encoded: encoded

    def encode_windows(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return self.of_window(encode_windows(*arguments, **options))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    faults = Faults()
    monkeypatch.setattr(slots_module, "encode_windows", faults.encode_windows)
    return faults


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretended_gpu() as gpu:
        yield gpu


@pytest.fixture
def stage(folder: Path, gpu: Gpu, faults: Faults) -> Iterator[TranscribeStage]:
    greedy = DecodingSettings(
        temperature=(0.0,), language="en", logprob_threshold=None, no_speech_threshold=None
    )
    engine = Engine.from_folder(folder, decoding=greedy, device="cuda", slots=1)
    yield TranscribeStage(SPEC, engine_factory=lambda _: engine)
    engine.close()


@pytest.mark.long
def test_a_gpu_without_a_fault_proves_itself_as_often_as_it_is_asked(
    stage: TranscribeStage,
) -> None:
    for _ in range(2):
        stage.transcribe_silence(part())
    assert stage(part())["status"].to_pylist() == ["ok"]


@pytest.mark.long
def test_a_wrong_number_in_a_window_alone_is_the_window_s_failure(
    stage: TranscribeStage, faults: Faults
) -> None:
    faults.of_window = lambda encoded: encoded * math.nan
    assert stage(part())["error_kind"].to_pylist() == [NOT_A_NUMBER]
    faults.of_window = lambda encoded: encoded
    stage.transcribe_silence(part())


def unknown(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("CUDA error: unknown error (cudaErrorUnknown)")


def no_memory(_: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda encoded: encoded * math.nan, "found decoding a window in torch.float16"),
        (unknown, "CUDA error: unknown error"),
        (no_memory, "CUDA out of memory"),
    ],
)
def test_a_gpu_that_fails_of_silence_is_at_fault_whatever_the_recording(
    stage: TranscribeStage, faults: Faults, fault: Any, words: str
) -> None:
    faults.of_window = fault
    with pytest.raises(EngineError) as caught:
        stage.transcribe_silence(part())
    assert words in str(caught.value)
    assert "Pretended" in str(caught.value)


@pytest.mark.long
def test_a_kernel_that_does_not_end_is_noticed(stage: TranscribeStage, faults: Faults) -> None:
    released, watch = threading.Event(), StuckWatch()

    def stuck(encoded: torch.Tensor) -> torch.Tensor:
        released.wait(60)
        return encoded

    faults.of_window = stuck
    results: list[pa.Table] = []
    caller = threading.Thread(target=lambda: results.append(stage(part())))
    caller.start()
    deadline = time.monotonic() + 30
    while not stage.activity.parts_in_engines:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    looks = [watch.is_stuck(stage.activity) for _ in range(STUCK_LOOKS + 1)]
    released.set()
    caller.join()
    assert (looks[:-1], looks[-1]) == ([False] * STUCK_LOOKS, True)
    assert not watch.is_stuck(stage.activity)
    assert results[0]["status"].to_pylist() == ["ok"]


def test_what_has_nothing_to_do_is_not_stuck() -> None:
    watch, slow = StuckWatch(), StuckWatch()
    assert not any(watch.is_stuck(Activity()) for _ in range(STUCK_LOOKS + 2))
    steps = (Activity(parts_started=1, steps=number) for number in range(STUCK_LOOKS + 2))
    assert not any(slow.is_stuck(each) for each in steps)
    assert any(watch.is_stuck(Activity(), proving=True) for _ in range(STUCK_LOOKS + 2))
