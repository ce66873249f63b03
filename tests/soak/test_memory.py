"""What a process takes at its peak, against the formula in corpus_asr/transcription/README.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from corpus_asr.benchmark.measuring import SHAPES
from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.families.loading import resolve_dtype
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.transcription.engine import predicted_cpu_bytes
from corpus_asr.units import MEBIBYTE

pytestmark = pytest.mark.slow

SLOTS = 8


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", ["tiny", "base", "small"])
def test_a_process_takes_what_the_formula_says(shape: str, dtype: str, tmp_path: Path) -> None:
    best = resolve_dtype("auto", torch.device("cpu"))
    if dtype == "bfloat16" and best != torch.bfloat16:
        pytest.skip("this processor does not compute in bfloat16")
    found = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, "-m", "corpus_asr.benchmark", "--shape", shape, "--dtype", dtype,
         "--batch", str(SLOTS), "--peers", "none", "--runs", "1", "--tokens-per-window", "20",
         "--device", "cpu", "--json", str(found)],
        check=True, timeout=1800,
    )  # fmt: skip
    (table,) = json.loads(found.read_text())["tables"]
    (row,) = table["rows"]
    model = WhisperForConditionalGeneration(SHAPES[shape].config()).to(getattr(torch, dtype))
    size = model.slot_model().size
    predicted = predicted_cpu_bytes(size, slots=SLOTS, encode_batch=encode_batch_on("cpu"))
    assert row["peak_memory_mib"] * MEBIBYTE == pytest.approx(predicted, rel=0.15)
