"""Engines on a pretended GPU: memory that is reckoned, and recordings from parts to text."""

from pathlib import Path
from typing import Any

import pytest

from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.segments import Segment
from corpus_asr.transcription.engine import auto_slots, predicted_bytes
from tests.decoding.test_gpu import ask, load
from tests.support.checkpoints import tiny_whisper
from tests.support.device import pretended_gpu
from tests.support.slots import assert_all_same, run_jobs

# Most of it in caches, as in a real checkpoint.
SHAPE: dict[str, Any] = {
    "d_model": 64, "layers": 2, "heads": 4, "vocab_size": 200, "max_target_positions": 48,
    "max_source_positions": 100, "spread": 0.15,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("checkpoint"), **SHAPE)


# Of what is free once the model is loaded, so many slots fit.
@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "slots"),
    [
        ("sampled", 12),
        pytest.param("beams", 6, marks=pytest.mark.slow),
        pytest.param("sampled", 3, marks=pytest.mark.slow),
        pytest.param("beams", 12, marks=pytest.mark.slow),
    ],
)
def test_slots_that_are_chosen_fit_and_take_what_is_reckoned(
    folder: Path, kind: str, slots: int
) -> None:
    num_beams = 3 if kind == "beams" else 1
    with pretended_gpu() as gpu:
        model = load(folder, "cuda").slot_model()
        size: ModelSize = model.size
        taken = size.weight_bytes + predicted_bytes(size, slots=0, encode_batch=0).fused_copies
        needed = predicted_bytes(size, slots=slots, encode_batch=4, num_beams=num_beams).total
        gpu.memory.capacity = gpu.memory.live + round((needed - taken) / 0.8) + 1
        chosen = auto_slots(model, encode_batch=4, num_beams=num_beams)
        assert chosen == slots
        scheduler = SlotScheduler(model, slots, encode_batch=4)
        tasks = [[ask(kind, n), ask("sampled", n)] for n in range(slots + 2)]
        run_jobs(scheduler, tasks)
        assert scheduler.statistics.halvings == 0
        # Of what windows are started by, the recordings for many at once are not reached here.
        assert 0.8 < gpu.memory.peak / needed < 1.0


@pytest.mark.slow
def test_a_lane_of_beams_that_has_no_room_halves_the_slots(folder: Path) -> None:
    tasks = [[ask("beams", number)] for number in range(4)]
    expected = run_jobs(SlotScheduler(load(folder).slot_model(), 3), tasks)
    with pretended_gpu() as gpu:
        model = load(folder, "cuda").slot_model()
        scheduler = SlotScheduler(model, 24, encode_batch=4)
        gpu.memory.capacity = gpu.memory.live + 500_000
        assert_all_same(run_jobs(scheduler, tasks), expected)
        assert scheduler.statistics.halvings > 0


def test_processes_that_share_a_gpu_take_their_part_whoever_comes_first(folder: Path) -> None:
    with pretended_gpu() as gpu:
        model = load(folder, "cuda").slot_model()
        gpu.memory.capacity = 2 * gpu.memory.live + 6_000_000
        alone = auto_slots(model, encode_batch=4)
        half = auto_slots(model, encode_batch=4, gpu_fraction=0.5)
        assert 1 < half < alone
        # Nothing is left by the other but what is its own.
        gpu.memory.capacity -= 2_000_000
        assert auto_slots(model, encode_batch=4, gpu_fraction=0.5) < half


CLIP = Path(__file__).resolve().parents[1] / "data" / "clips" / "english.wav"
SETTINGS: dict[str, dict[str, Any]] = {
    "words": {"word_timestamps": True},
    "beams and a penalty": {"beam_size": 2, "temperature": 0.0, "repetition_penalty": 1.1},
}


def segments_of(device: str, decoding: dict[str, Any]) -> tuple[Segment, ...]:
    with Transcriber(device=device, compute_type="float32", slots=2) as transcriber:
        return transcriber.transcribe(str(CLIP), **decoding).segments


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["words", pytest.param("beams and a penalty", marks=pytest.mark.slow)]
)
def test_a_recording_has_the_cpu_s_words_at_the_cpu_s_times(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaRecorder, "warm_ups", 2)
    expected = segments_of("cpu", SETTINGS[name])
    with pretended_gpu() as gpu:
        found = segments_of("cuda", SETTINGS[name])
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.text, ours.start_s, ours.end_s) == (
                theirs.text, theirs.start_s, theirs.end_s
            )  # fmt: skip
            times = [(word.word, word.start_s, word.end_s) for word in ours.words or ()]
            assert times == [(w.word, w.start_s, w.end_s) for w in theirs.words or ()]
        assert any(segment.words for segment in expected) == (name == "words")
        assert gpu.replays > 10 or name != "words"
