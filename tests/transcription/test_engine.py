"""The engine around a scripted network: threads, failures, closing."""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.batch import SlotBatch
from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.errors import ClosedError, ConfigError, EngineError, ItemError
from corpus_asr.families.whisper.model import WhisperSlotModel
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.transcription.engine import Engine, auto_slots, fitting_slots, predicted_bytes
from corpus_asr.transcription.whisper import WhisperTranscriber
from corpus_asr.transcription.windows import PartRequest
from tests.support import prompt_formats
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.corpora import tiny_model
from tests.support.forks import in_fork
from tests.support.markov import MarkovModel
from tests.support.prompt_formats import BEGIN, END, GERMAN, prompt_format
from tests.support.slots import ScriptedModel, held_bytes, needs_int8, peak_bytes

GREEDY: dict[str, Any] = {
    "beam_size": 1,
    "temperature": (0.0,),
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


class Network(ScriptedModel):
    """Says the script of its window; asked with the start token alone, says a language."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().logits(hidden)
        logits[..., GERMAN] += 1.0  # the likeliest language
        return logits


def part(
    script: int, *, speech: bool = True, decoding: DecodingSettings | None = None
) -> PartRequest:
    return prompt_formats.part(
        3.0,
        [(100.0, 103.0)] if speech else [],
        recording_id=f"r{script}",
        features=np.full((300, 2), script, dtype=np.float16),
        start_s=100.0,
        decoding=decoding,
    )


def transcriber() -> WhisperTranscriber:
    return WhisperTranscriber(prompt_format())


@pytest.fixture
def engine() -> Iterator[Engine]:
    scripts = [
        [BEGIN, 1, 2, BEGIN + 10, END],
        [BEGIN, 3, BEGIN + 5, BEGIN + 6, 4, BEGIN + 12, END],
    ]
    settings = DecodingSettings(**GREEDY)
    with Engine(Network(scripts), transcriber(), decoding=settings, slots=2) as engine:
        yield engine


def test_parts_become_segments_in_recording_time(engine: Engine) -> None:
    futures = [engine.submit(part(number % 2)) for number in range(6)]
    for number, future in enumerate(futures):
        found = future.result(timeout=30)
        texts = [segment.text for segment in found.segments]
        assert texts == ([" w1 w2"] if number % 2 == 0 else [" w3", " w4"])
        assert found.segments[0].start_s == 100.0
        assert found.segments[-1].end_s == pytest.approx(100.2 if number % 2 == 0 else 100.24)
        assert found.language == "de"
        assert found.language_probability is not None
        assert 0.5 < found.language_probability <= 1.0


def test_settings_of_one_part_override_the_engine_s(engine: Engine) -> None:
    given = DecodingSettings(language="en", **GREEDY)
    found = engine.submit(part(0, decoding=given)).result(timeout=30)
    assert (found.language, found.language_probability) == ("en", None)
    chosen = DecodingSettings(language=("en",), strategy="chunked", **GREEDY)
    assert engine.submit(part(1, decoding=chosen)).result(timeout=30).language == "en"
    assert engine.submit(part(0, speech=False)).result(timeout=30).segments == ()


def test_what_the_checkpoint_cannot_do_is_refused_before_any_work(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"does not know xx; it knows de, en"):
        engine.submit(part(0, decoding=DecodingSettings(language="xx")))


def test_closing_does_not_wait_for_work() -> None:
    model = Network([[BEGIN] + [1] * 20])
    engine = Engine(model, transcriber(), decoding=DecodingSettings(**GREEDY), slots=1)
    futures = [engine.submit(part(0)) for _ in range(500)]
    engine.close()
    assert sum(future.exception() is not None for future in futures) > 0
    with pytest.raises(ClosedError, match="closed"):
        engine.submit(part(0))


BUSY = """
import time, torch
from corpus_asr.transcription import engine
from tests.transcription.test_engine import GREEDY, DecodingSettings, Network, transcriber

class Busy(engine.SlotScheduler):
    pending = 1  # so that it never waits

    def advance(self):
        square = torch.ones(200, 200)
        for _ in range(10):
            square = torch.nn.functional.normalize(square @ square)

engine.SlotScheduler = Busy
engine.Engine(Network([]), transcriber(), decoding=DecodingSettings(**GREEDY), slots=1)
time.sleep(0.2)
"""


@pytest.mark.long
def test_a_busy_engine_lets_the_process_end() -> None:
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", BUSY], cwd=root, check=False).returncode == 0


def test_a_fork_is_refused_and_closes_nothing(engine: Engine) -> None:
    said = in_fork(lambda: engine.submit(part(0)).result())
    assert said.startswith("ForkedError: transcribing")
    assert f"this engine was made in process {os.getpid()}" in said
    assert in_fork(engine.close) == "None"
    assert engine.submit(part(0)).result(timeout=30).segments


def test_a_part_that_nobody_waits_for_leaves_its_slots(engine: Engine) -> None:
    """Also one that is being decoded, and whether or not it is done."""
    futures = [engine.submit(part(0)) for _ in range(60)]
    for future in futures[1:]:
        engine.cancel(future)
    for future in futures[1:]:
        with contextlib.suppress(CancelledError):
            assert future.result(timeout=30).segments
    assert futures[0].result(timeout=30).segments
    assert engine.submit(part(1)).result(timeout=30).segments
    assert engine.statistics().windows < 30
    ended = [future for future in futures[1:] if future.cancelled() or future.exception()]
    assert len(ended) > 30
    engine.cancel(futures[0])
    assert futures[0].result().segments


class Small(Network):
    def step(self, state: Any, tokens: Any, positions: Any, **options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory (scripted)")


class Lost(Network):
    def encode(self, features: torch.Tensor, **options: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: device lost")


class Overflowing(Network):
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden) * float("nan")


SCRIPT = [[BEGIN, 1, BEGIN + 5, END]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Lost(SCRIPT), "device lost"),
        (Small(SCRIPT), "out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_fails_breaks_the_engine_and_nobody_waits_for_ever(
    model: Network, message: str
) -> None:
    decoding = DecodingSettings(**GREEDY)
    with Engine(model, transcriber(), decoding=decoding, slots=4) as engine:
        futures: list[Future[PartTranscript]] = []
        with contextlib.suppress(EngineError):  # it may have broken down before they reach it
            futures.append(engine.submit(part(0)))
            futures.append(engine.submit(part(0)))
        assert futures
        for future in futures:
            with pytest.raises(EngineError, match=message):
                future.result(timeout=30)
        with pytest.raises(EngineError, match=message):
            engine.submit(part(0))


def test_a_part_without_numbers_fails_and_the_engine_goes_on() -> None:
    decoding = DecodingSettings(**GREEDY)
    with Engine(Overflowing(SCRIPT), transcriber(), decoding=decoding, slots=4) as engine:
        for _ in range(2):
            with pytest.raises(
                ItemError, match=r"set model\.compute_type to bfloat16 or float32"
            ) as found:
                engine.submit(part(0)).result(timeout=30)
            assert found.value.kind == "not_a_number"


def test_statistics_can_be_read_while_the_engine_works(engine: Engine) -> None:
    futures = [engine.submit(part(number % 2)) for number in range(12)]
    seen = [engine.statistics()]
    for future in futures:
        future.result(timeout=30)
        seen.append(engine.statistics())
    assert [one.steps for one in seen] == sorted(one.steps for one in seen)
    assert seen[-1].windows >= 12
    assert seen[-1].tokens >= 12 + 6 * 4 + 6 * 6  # a language each, and the text
    assert 0.0 < (seen[-1].occupancy or 0.0) <= 1.0
    assert seen[-1] is not engine.statistics()
    assert engine.slots == seen[-1].slots == 2


# So that some windows of the random text are decoded again, sampled.
SETTINGS = DecodingSettings(
    beam_size=1, temperature=(0.0, 0.4), compression_ratio_threshold=1.8, logprob_threshold=None
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"d_model": 16, "heads": 2, "layers": 1, "spread": 0.3}
    return tiny_model(tmp_path_factory.mktemp("model"), max_target_positions=40, **sizes)


PARTS = 5  # of one window or two


def noise(number: int) -> PartRequest:
    return prompt_formats.part(10 + 7 * number, mels=80, seed=number)


def said(
    checkpoint: Path, slots: int, order: list[int], dtype: str
) -> dict[int, tuple[Segment, ...]]:
    with Engine.from_folder(
        checkpoint, decoding=SETTINGS, device="cpu", dtype=dtype, slots=slots
    ) as engine:
        futures = {number: engine.submit(noise(number)) for number in order}
        return {number: future.result(timeout=120).segments for number, future in futures.items()}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("float32", marks=pytest.mark.slow),
        "bfloat16",
        pytest.param("int8", marks=needs_int8),
    ],
)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def of_three(checkpoint: Path, dtype: str) -> dict[int, tuple[Segment, ...]]:
    found = said(checkpoint, 3, list(range(PARTS)), dtype)
    assert {segment.temperature for one in found.values() for segment in one} == {0.0, 0.4}
    return found


@pytest.mark.long
@pytest.mark.parametrize("slots", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_any_number_of_slots_and_any_order_give_the_same(
    checkpoint: Path, of_three: dict[int, tuple[Segment, ...]], slots: int, dtype: str
) -> None:
    order = list(range(PARTS))
    random.Random(slots).shuffle(order)
    if slots == 1:
        order = order[:3]  # one after the other takes long
    found = said(checkpoint, slots, order, dtype)
    for number in order:
        assert len(found[number]) == len(of_three[number]) > 0
        for ours, expected in zip(found[number], of_three[number], strict=True):
            assert (ours.text, ours.tokens) == (expected.text, expected.tokens)
            assert (ours.start_s, ours.end_s) == (expected.start_s, expected.end_s)
            assert ours.temperature == expected.temperature
            assert ours.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)


SLOTS, BATCH = 8, 4
GIB = 1 << 30

LARGE = ModelSize(
    width=1280,
    vocab_size=51_866,
    tokens=448,
    positions=1500,
    token_values=2 * 32 * 1280,
    position_values=2 * 32 * 1280,
    fused_values=32 * 6 * 1280 * 1281,
    encoder_values=1500 * (3 * 1280 + 2 * 5120) + 128 * 3000,
    element_bytes=2,
    window_element_bytes=2,
    weight_bytes=3_086_981_120,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """With more, CPUs with AMX take more than predicted in float16; nobody uses it there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[torch.float32, torch.float16], ids=str)
def network(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> WhisperForConditionalGeneration:
    folder = tiny_whisper(
        tmp_path_factory.mktemp("checkpoint"),
        d_model=128,
        layers=2,
        heads=2,
        vocab_size=2000,
        max_source_positions=300,
        encoder_ffn_dim=600,
    )
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=request.param)


@pytest.fixture
def model(network: WhisperForConditionalGeneration) -> WhisperSlotModel:
    return network.slot_model()


def test_caches_and_rows_take_what_is_predicted(model: WhisperSlotModel) -> None:
    predicted = predicted_bytes(model.size, slots=SLOTS, encode_batch=BATCH)
    caches = held_bytes(model.new_state(SLOTS))
    assert predicted.self_cache + predicted.cross_cache == pytest.approx(caches, rel=0.01)
    batch = SlotBatch(model, SLOTS)
    rows = held_bytes(batch) - caches - held_bytes(model)
    assert predicted.slot_rows == pytest.approx(rows, rel=0.02)  # a thousand bytes for all slots


def test_the_encoder_s_peak_is_what_is_predicted(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    features = torch.zeros(BATCH, 80, 600, dtype=model.dtype)
    # The network's own modules, as on a GPU.
    encode = torch.inference_mode()(network.model.encoder.encode)
    found = features.nbytes + peak_bytes(lambda: encode(features))
    # What checks types in tests holds what the blocks were given; nobody else does.
    held = BATCH * 300 * 128 * model.dtype.itemsize
    predicted = predicted_bytes(model.size, slots=0, encode_batch=BATCH)
    assert predicted.encoder_activations == pytest.approx(found - held, rel=0.02)


def test_speech2text_takes_what_is_predicted(tmp_path: Path) -> None:
    # In the proportions of s2t-small: the convolutions' peak stays below that of the blocks.
    folder = tiny_speech2text(
        tmp_path, d_model=64, encoder_ffn_dim=512, conv_channels=256, heads=2, vocab_size=2000
    )
    network = Speech2TextForConditionalGeneration.from_pretrained(folder)
    model = network.slot_model().for_windows(600)
    predicted = predicted_bytes(model.size, slots=SLOTS, encode_batch=BATCH)
    assert predicted.weights == sum(weight.nbytes for weight in network.parameters())
    caches = held_bytes(model.new_state(SLOTS))
    assert predicted.self_cache + predicted.cross_cache == pytest.approx(caches, rel=0.01)
    windows = torch.zeros(BATCH, 600, 80)

    def encode() -> torch.Tensor:
        with torch.inference_mode():
            encoded: torch.Tensor = network.model.encoder.encode(windows, num_frames=[600] * BATCH)
        return encoded

    peak = windows.nbytes + peak_bytes(encode)
    # The mask, and what the blocks began with, are beside; the reserve is twice as much.
    assert 0.8 < peak / predicted.encoder_activations < 1.1


@pytest.mark.parametrize(
    ("free_gib", "expected"), [(0.0, 1), (0.5, 1), (8.0, range(8, 20)), (120.0, 128)]
)
def test_as_many_slots_as_fit(free_gib: float, expected: int | range) -> None:
    found = fitting_slots(LARGE, free_bytes=int(free_gib * GIB), encode_batch=16)
    assert found in expected if isinstance(expected, range) else found == expected


def test_what_fits_leaves_the_reserve() -> None:
    free = 12 * GIB
    slots = fitting_slots(LARGE, free_bytes=free, encode_batch=16)

    def needed(slots: int) -> int:
        parts = predicted_bytes(LARGE, slots=slots, encode_batch=16)
        return parts.total - parts.weights - parts.fused_copies

    assert needed(slots) <= 0.8 * free < needed(slots + 1)


def test_a_cpu_and_a_model_that_does_not_tell_its_size_get_a_fixed_number(
    model: WhisperSlotModel,
) -> None:
    assert auto_slots(model, encode_batch=BATCH) == auto_slots(MarkovModel(), encode_batch=2) == 8
