"""What a process, and a whole run, take at their peak, against what is predicted of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.networks import SHAPES
from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.families.layers.projection import can_use_int8
from corpus_asr.families.loading import load_slot_model, resolve_dtype
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.runtime.resources import (
    FEATURE_BYTES_PER_S,
    MAX_MEL_BINS,
    local_machine,
    memory_use,
    this_machine,
)
from corpus_asr.transcription.engine import predicted_cpu_bytes
from corpus_asr.units import MEBIBYTE
from tests.support.checkpoints import tiny_whisper
from tests.support.corpora import CLIPS
from tests.support.long_recordings import spoken, write_hours
from tests.support.memory_peaks import peaks_of
from tests.support.tables import run_config
from tests.support.tokenizers import real_tokenizer

pytestmark = pytest.mark.slow

SLOTS = 8
HOURS = 0.35
WITHIN = 0.15


def predicted(size: ModelSize) -> int:
    return predicted_cpu_bytes(size, slots=SLOTS, encode_batch=encode_batch_on("cpu"))


def needs(dtype: str) -> None:
    """Skip what this processor does not do."""
    best = resolve_dtype("auto", torch.device("cpu"))
    if dtype == "bfloat16" and best != torch.bfloat16:
        pytest.skip("this processor does not compute in bfloat16")
    if dtype == "int8" and not can_use_int8():
        pytest.skip("this processor does not multiply in 8 bits")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
@pytest.mark.parametrize("shape", ["tiny", "base", "small"])
def test_a_process_takes_what_the_formula_says(shape: str, dtype: str, tmp_path: Path) -> None:
    needs(dtype)
    found = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.networks", shape, "--dtype", dtype,
         "--batch", str(SLOTS), "--peers", "--runs", "1", "--tokens-per-window", "20",
         "--device", "cpu", "--json", str(found)],
        check=True, timeout=1800,
    )  # fmt: skip
    (table,) = json.loads(found.read_text())
    ((run,),) = (row["runs"] for row in table["rows"])
    best = resolve_dtype("auto", torch.device("cpu"))
    weights = best if dtype == "int8" else getattr(torch, dtype)
    model = WhisperForConditionalGeneration(SHAPES[shape].config()).to(weights)
    size = model.slot_model(int8=dtype == "int8").size
    assert run["peak_mib"] * MEBIBYTE == pytest.approx(predicted(size), rel=WITHIN)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("way", ["local", "Ray"])
def test_a_run_takes_what_is_predicted_of_it(way: str, dtype: str, tmp_path: Path) -> None:
    needs(dtype)
    shape = SHAPES["base"]
    real_tokenizer(tmp_path / "tokenizer")
    model = tiny_whisper(
        tmp_path / "model", tokenizer=tmp_path / "tokenizer",
        d_model=shape.width, layers=shape.encoder_layers, heads=shape.width // 64,
    )  # fmt: skip
    recording = tmp_path / "long.mp3"
    write_hours(recording, hours=HOURS, sound=spoken([CLIPS / "longer.mp3", CLIPS / "english.wav"]))
    config = run_config(
        recording, tmp_path / "output", model={"checkpoint": str(model), "compute_type": dtype},
        # Of random weights every window would fall back to all temperatures.
        decoding={"language": "en", "strategy": "chunked", "temperature": [0.0]},
        transcribe={"slots": SLOTS},
    )  # fmt: skip
    job = tmp_path / "job.yaml"
    job.write_text(config.model_dump_json(exclude_unset=True))
    options = ["--local"] if way == "local" else []
    found = peaks_of([sys.executable, "-m", "corpus_asr", "run", str(job), *options])
    loaded: Any = load_slot_model(model, device="cpu", dtype=dtype)
    features = HOURS * 3600 * FEATURE_BYTES_PER_S * shape.num_mel_bins / MAX_MEL_BINS
    use = memory_use(
        config,
        this_machine() if way == "local" else local_machine(),
        with_ray=way == "Ray",
        num_packs=1,
        model_bytes=predicted(loaded.size),
        features_bytes=int(features),
    )
    assert found.total == pytest.approx(use.total, rel=WITHIN), found
