"""The GPU validation on a CPU: its lines and its JSON, failures of stages, the committed files."""

import json
import re
import time
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import correctness, validate
from benchmarks.gpu.correctness import DifferenceError
from benchmarks.gpu.figures import Figures, Options
from benchmarks.gpu.recordings import EXPECTED, FEATURES, extract_parts, read_parts, read_texts
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.transcription.windows import PartRequest

SPOKEN = Path(__file__).resolve().parents[1] / "data" / "spoken"
ARGUMENTS = ["--shape", "nano", "--device", "cpu", "--quick"]
MAX_FEATURES_BYTES = 1_500_000
# Of one core, in float16: what another build of the resampler or FFT may round elsewhere.
FEATURES_TOLERANCE = 0.02


def planted(options: Options, say: Figures) -> None:
    say("before", 1.23456, "ms")
    raise RuntimeError("CUDA error: an illegal memory access")


def endless(options: Options, say: Figures) -> None:
    time.sleep(60)


def after(options: Options, say: Figures) -> None:
    say("works", 3, "things")


@pytest.mark.slow
def test_a_stage_that_fails_is_reported_and_the_next_ones_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"broken": planted, "endless": endless, "skipped": validate.STAGES["memory"],
              "after": after}  # fmt: skip
    monkeypatch.setattr(validate, "STAGES", stages)
    monkeypatch.setattr(validate, "_STAGE_MINUTES", 0.5 / 60)
    path = tmp_path / "found.json"
    assert validate.main([*ARGUMENTS, "--json", str(path)]) == 1
    said, errors = capsys.readouterr()
    lines = said.splitlines()
    assert re.search(r"^broken +before +1.235 ms$", said, re.MULTILINE)
    assert re.search(r"^broken +status +failed after 0.0 s: RuntimeError: CUDA error", said, re.M)
    assert re.search(r"^after +works +3 things$", said, re.MULTILINE)
    assert "in planted" in errors, "where it failed"
    found = json.loads(lines[-1])
    assert found == json.loads(path.read_text())
    assert [(one["stage"], one["status"]) for one in found["stages"]] == [
        ("broken", "failed"), ("endless", "failed"), ("skipped", "skipped"), ("after", "passed"),
    ]  # fmt: skip
    assert "more than" in found["stages"][1]["reason"]
    assert {"stage": "broken", "key": "before", "value": 1.235, "unit": "ms"} in found["figures"]
    assert validate.main([*ARGUMENTS, "after"]) == 0
    assert validate.main([*ARGUMENTS, "--minutes", "0"]) == 0
    assert "skipped after 0.0 s: 0 minutes are over" in capsys.readouterr()[0]


class ScriptedEngine:
    """Says the texts that stand for a model; each engine with other probabilities."""

    made = 0

    def __init__(self, texts: list[str], *_: object, **__: object) -> None:
        self.texts = texts
        ScriptedEngine.made += 1
        self.logprob = -0.1 - 1e-6 * ScriptedEngine.made

    def __enter__(self) -> "ScriptedEngine":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, part: PartRequest) -> "Future[PartTranscript]":
        names = list(json.loads(EXPECTED.read_text()))
        text = self.texts[names.index(f"{part.recording_id}:{part.part}")]
        segment = Segment(
            start_s=0.0, end_s=1.0, text=text, tokens=(), language="en", language_probability=None,
            task="transcribe", confidence=1.0, avg_logprob=self.logprob, no_speech_prob=0.0,
            compression_ratio=1.0, temperature=0.0, speech_fraction=1.0,
        )  # fmt: skip
        future: Future[PartTranscript] = Future()
        future.set_result(PartTranscript(segments=(segment,)))
        return future


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0, 1])
def test_another_text_fails_the_validation(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = read_texts()
    on_gpu = ["And so, my fellow Martians", *texts[1:]] if wrong else texts
    models = {"cpu": texts, "meta": on_gpu}
    monkeypatch.setattr(correctness, "load_slot_model", lambda _, device, dtype: models[device])
    monkeypatch.setattr(correctness, "Engine", ScriptedEngine)
    asked = validate._parser().parse_args([])
    found: dict[str, object] = {}
    options = replace(Options.of(asked), device=torch.device("meta"))
    say = Figures(lambda key, value, unit: found.update({key: value}))
    with pytest.raises(DifferenceError, match="two_engines") if wrong else nullcontext():
        correctness.validation(options, say)
    assert found["cpu.float32.greedy.not_as_committed"] == 0
    assert found["float32.beams.not_as_on_cpu"] == wrong
    assert found["float32.two_engines.not_as_on_cpu"] == 2 * wrong
    assert (float(str(found["bfloat16.greedy.wer_to_float32"])) > 0) == bool(wrong)


def test_the_committed_features_are_those_of_the_recordings() -> None:
    assert FEATURES.stat().st_size <= MAX_FEATURES_BYTES
    committed, texts = read_parts(), read_texts()
    assert len(committed) == len(texts) == 3
    assert all(texts)
    (found,) = extract_parts(SPOKEN, ["inaugural.flac"])
    ours = committed[0]
    assert (found.num_samples, found.start_s, found.speech) == (
        ours.num_samples, ours.start_s, ours.speech,
    )  # fmt: skip
    np.testing.assert_allclose(
        found.features.astype(np.float32), ours.features.astype(np.float32), atol=FEATURES_TOLERANCE
    )
