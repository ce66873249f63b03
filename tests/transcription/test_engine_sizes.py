"""What a part says depends neither on how many windows are decoded beside it nor on their order.

In every type: sums of 8 bits are exact, and on CPUs that have bfloat16 its products were found to
give a row the same bits with 1 to 16 rows (shapes of whisper-tiny to -large, oneDNN, Zen 4).
"""

import random
from pathlib import Path

import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.segments import Segment
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.windows import PartRequest
from tests.support.checkpoints import tiny_whisper
from tests.support.prompt_formats import part
from tests.support.slots import needs_int8
from tests.support.tokenizers import tiny_tokenizer

# So that some windows of the random text are decoded again, sampled.
SETTINGS = DecodingSettings(
    temperature=(0.0, 0.4), compression_ratio_threshold=1.8, logprob_threshold=None
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(tokenizer)
    return tiny_whisper(
        tmp_path_factory.mktemp("checkpoint"),
        tokenizer=tokenizer,
        d_model=16,
        heads=2,
        layers=1,
        max_target_positions=40,
        spread=0.3,
    )


def noise(number: int) -> PartRequest:
    return part(10 + 4.5 * number, mels=80, seed=number)


def said(
    checkpoint: Path, slots: int, order: list[int], dtype: str
) -> dict[int, tuple[Segment, ...]]:
    with Engine.from_folder(
        checkpoint, decoding=SETTINGS, device="cpu", dtype=dtype, slots=slots
    ) as engine:
        futures = {number: engine.submit(noise(number)) for number in order}
        return {number: future.result(timeout=120).segments for number, future in futures.items()}


@pytest.fixture(
    scope="module", params=["float32", "bfloat16", pytest.param("int8", marks=needs_int8)]
)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def of_three(checkpoint: Path, dtype: str) -> dict[int, tuple[Segment, ...]]:
    found = said(checkpoint, 3, list(range(8)), dtype)
    assert {segment.temperature for one in found.values() for segment in one} == {0.0, 0.4}
    return found


@pytest.mark.parametrize("slots", [1, 8, 16])
def test_any_number_of_slots_and_any_order_give_the_same(
    checkpoint: Path, of_three: dict[int, tuple[Segment, ...]], slots: int, dtype: str
) -> None:
    order = list(range(8))
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
