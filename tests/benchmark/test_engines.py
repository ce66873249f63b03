"""Every engine says exactly as many tokens as it is asked for, and measures all its stages."""

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from corpus_asr.benchmark.engines import (
    BatchedFasterWhisper,
    OpenAIWindows,
    TransformersWindows,
    WindowsRunner,
    tree_cpu_s,
)
from corpus_asr.benchmark.measuring import Shape
from corpus_asr.benchmark.orders import ENGINES, Order
from corpus_asr.benchmark.ours import OurWindows
from corpus_asr.benchmark.rounds import Worker
from corpus_asr.errors import ConfigError, EngineError

NANO = Shape(name="nano", width=64, encoder_layers=1, decoder_layers=1)
TOKENS = 5
BATCH = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return NANO.write(tmp_path_factory.mktemp("nano") / "nano")


def order_for(folder: Path, name: str, *, dtype: str = "float32", beams: int = 1) -> Order:
    return Order(
        engine=name,
        dtype=dtype,
        runner=str(ENGINES[name].decoding),
        model=str(folder),
        scratch=str(folder.parent),
        device="cpu",
        threads=torch.get_num_threads(),
        batch=BATCH,
        beams=beams,
        tokens_per_window=TOKENS,
    )


@pytest.mark.parametrize("beams", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "timer"),
    [
        ("corpus-asr", OurWindows),
        ("transformers", TransformersWindows),
        # It is converted in a process of its own first.
        pytest.param("openai-whisper", OpenAIWindows, marks=pytest.mark.slow),
    ],
)
def test_every_window_gets_exactly_as_many_tokens_as_asked_for(folder, name, timer, beams):
    one: WindowsRunner = timer(order_for(folder, name, beams=beams))
    run = one.run()
    assert run["audio_s"] == 30.0 * BATCH
    assert list(run["stages"]) == ["encode", "first_token", "tokens"]
    assert run["total_s"] == pytest.approx(sum(run["stages"].values()))
    assert one.decode(one.encode(), 1) == [1] * BATCH


def test_engines_hear_the_same(folder):
    """Encoders of one checkpoint, fed by each engine's own way in, agree."""
    ours = OurWindows(order_for(folder, "corpus-asr"))
    theirs = TransformersWindows(order_for(folder, "transformers"))
    found = torch.stack(ours.encode())
    assert ours.prompt == theirs.prompt
    np.testing.assert_allclose(found.numpy(), theirs.encode().numpy(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 2])
def test_ctranslate2_does_so_too_in_a_process_without_torch(folder, beams):
    with Worker(order_for(folder, "faster-whisper", dtype="int8", beams=beams)) as worker:
        run = worker.run()
        assert worker.failed is None
    assert run is not None
    assert list(run["stages"]) == ["encode", "first_token", "tokens"]
    assert run["peak_gpu_mib"] is None


def test_an_engine_that_says_fewer_tokens_is_no_result(folder):
    class Terse(OurWindows):
        def decode(self, encoded, num_tokens):
            return super().decode(encoded, max(1, num_tokens - 1))

    with pytest.raises(EngineError, match=r"requested 5 tokens.*said \[4, 4, 4\]"):
        Terse(order_for(folder, "corpus-asr")).run()


def test_a_type_an_engine_does_not_have_is_refused(folder):
    for name, timer in (
        ("openai-whisper", OpenAIWindows),
        ("corpus-asr", OurWindows),
    ):
        with pytest.raises(ConfigError, match="float7"):
            timer(order_for(folder, name, dtype="float7"))


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_converted_is_one_row(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    broken = order_for(tmp_path, "faster-whisper", dtype="int8")
    runner = ENGINES["faster-whisper"].transcribing
    with Worker(replace(broken, runner=runner, scratch=str(tmp_path))) as worker:
        assert worker.failed is not None
        assert "converting" in worker.failed


def test_cpu_seconds_are_of_children_that_live_and_of_those_that_ended():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before_s = tree_cpu_s()
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        living_s = tree_cpu_s() - before_s
        child.communicate(b"\n")
    ended_s = tree_cpu_s() - before_s
    assert living_s >= 0.25  # counted in ticks of 10 ms
    assert ended_s >= living_s
    assert tree_cpu_s(child.pid) == 0.0


@pytest.mark.parametrize("settings", ["thresholds-off", "default"])
def test_batched_faster_whisper_decides_by_itself_on_timestamps(folder, settings):
    """Forced to write them, it loses sentences."""
    library = pytest.importorskip("faster_whisper")
    transcribe = inspect.signature(library.BatchedInferencePipeline.transcribe)
    calls = []

    class Pipeline:
        def transcribe(self, *args, **options):
            calls.append(transcribe.bind(self, *args, **options))
            return [], None

    runner = object.__new__(BatchedFasterWhisper)  # without a model
    runner.order = replace(order_for(folder, "faster-whisper-batched"), settings=settings)
    runner._pipeline = Pipeline()
    runner._text("a.wav")
    (call,) = calls
    call.apply_defaults()
    assert call.arguments["without_timestamps"] is True
    assert call.arguments["vad_filter"] is True
