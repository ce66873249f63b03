"""The command `finetune`: how it ends when stopped, and what a training gains on real speech."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from corpus_asr.audio.decode import open_audio
from corpus_asr.cli import main as cli
from corpus_asr.labelling.writers import HuggingFaceWriter
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import wav_bytes
from tests.support.spoken import spoken
from tests.support.training import training

MORE_WORDS_RIGHT = 1.0  # of a hundred


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sentences_that_were_not_learnt_are_heard_better(float_model: Path, tmp_path: Path) -> None:
    writers = {name: HuggingFaceWriter(tmp_path, name, "wav") for name in ("train", "validation")}
    for recording in spoken().values():
        with recording.path.open("rb") as file, open_audio(file, uri="a") as decoder:
            pieces = [piece[:1] for piece in decoder]
        for number, (start_s, end_s, text) in enumerate(recording.sentences):
            samples = np.concatenate(pieces, axis=1)
            cut = samples[:, round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
            row = {"example_id": "x", "text": text, "language": "en"}
            audio = wav_bytes(cut, rate_hz=SAMPLE_RATE_HZ)
            writers["validation" if number % 2 else "train"].add(row, audio)
    for writer in writers.values():
        writer.close()
    config = training(
        tmp_path,
        float_model,
        model={"freeze": ["model.encoder.*"]},
        data={name: [str(tmp_path / f"{name}.parquet")] for name in writers},
        training={
            "max_steps": 20, "eval_steps": 20, "save_steps": 20, "learning_rate": 1e-4,
            "per_device_train_batch_size": 3, "warmup_steps": 2, "lr_scheduler_type": "linear",
        },
    )  # fmt: skip
    job = tmp_path / "job.yaml"
    job.write_text(config.model_dump_json(), encoding="utf-8")
    done = CliRunner().invoke(cli.app, ["finetune", str(job)])
    assert done.exit_code == 0, done.output
    before, after = (float(rate) for rate in re.findall(r"wer ([\d.]+)%", done.stdout))
    assert after <= before - MORE_WORDS_RIGHT
