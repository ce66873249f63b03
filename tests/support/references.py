"""Networks and searches of other libraries with the weights of a checkpoint, to compare with."""

import tempfile
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import whisper
from torch import Tensor
from whisper.model import disable_sdpa
from whisper.tokenizer import get_tokenizer

from corpus_asr.decoding.alignment import token_begins
from corpus_asr.decoding.jobs import AlignJob, AlignResult
from corpus_asr.models.convert import convert
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.audio import decode
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

WINDOW = 200
"""Frames of a window; a tenth of the real one, to be quick."""


@dataclass(frozen=True)
class Pair:
    """The same weights here and in transformers."""

    ours: WhisperForConditionalGeneration
    theirs: Any

    def both(self, features: Tensor, **arguments: Any) -> tuple[Any, Any]:
        return self.say(features, **arguments), self.said(features, **arguments)

    def say(self, features: Tensor | None, **arguments: Any) -> Any:
        return self.ours.generate(features, **arguments)

    def said(self, features: Tensor, **arguments: Any) -> Any:
        with torch.no_grad():
            return self.theirs.generate(features, **arguments)

    def detect(self, features: Tensor | None, **arguments: Any) -> Tensor:
        return self.ours.detect_language(features, **arguments)

    @property
    def settings(self) -> Any:
        return self.ours.generation_config

    def set(self, **settings: Any) -> None:
        for name, value in settings.items():
            setattr(self.ours.generation_config, name, value)
            setattr(self.theirs.generation_config, name, value)

    @contextmanager
    def having(self, **settings: Any) -> Iterator[None]:
        before = {name: getattr(self.settings, name) for name in settings}
        self.set(**settings)
        try:
            yield
        finally:
            self.set(**before)


class Streamer:
    """A streamer that remembers."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []

    def put(self, tokens: Tensor) -> None:
        self.tokens.append(tokens.flatten().tolist())

    def end(self) -> None:
        self.tokens.append("end")


def pair(
    folder: Path, *, seed: int = 0, multilingual: bool = True, spread: float = 0.25, **config: Any
) -> Pair:
    """Write a checkpoint with windows of `WINDOW` frames and load it twice."""
    tiny_tokenizer(folder / "tokenizer", multilingual)
    settings = {"d_model": 32, "layers": 2, "heads": 2, "max_target_positions": 40, **config}
    checkpoint = tiny_whisper(
        folder / "model",
        seed=seed,
        tokenizer=folder / "tokenizer",
        spread=spread,
        max_source_positions=WINDOW // 2,
        **settings,
    )
    ours = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint)
    return Pair(ours.eval(), theirs.eval())


def sound(rows: int, frames: int, *, seed: int = 0) -> Tensor:
    """Random log-mel features that change slowly, as speech does."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(rows, 80, frames // 20 + 2, generator=generator)
    return torch.nn.functional.interpolate(steps, size=frames, mode="linear")


def same(ours: Any, theirs: Any, *, where: str = "output") -> None:
    """Compare nested outputs exactly, scores within rounding."""
    if isinstance(theirs, Tensor):
        assert ours.shape == theirs.shape, (where, ours, theirs)
        if theirs.dtype in (torch.int64, torch.float64):
            assert torch.equal(ours, theirs), (where, ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4, msg=where)
    elif hasattr(theirs, "keys"):
        wanted = [key for key in theirs if key != "past_key_values"]
        missing = [key for key in wanted if key not in ours]
        assert not missing, (where, missing, list(ours))
        for key in wanted:
            same(ours[key], theirs[key], where=f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), (where, ours, theirs)
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, where=f"{where}[{number}]")
    else:
        assert ours == theirs, (where, ours, theirs)


def openai_whisper(folder: Path) -> whisper.Whisper:
    """Load a checkpoint folder into openai-whisper's model, in float32."""
    with tempfile.TemporaryDirectory() as scratch:
        # tests/models/convert/test_folder.py compares what that computes.
        convert(folder, Path(scratch) / "model.pt")
        model = whisper.load_model(f"{scratch}/model.pt", device="cpu")
    with warnings.catch_warnings():
        # It leaves its vocabulary file open, which would fail whatever test comes next.
        warnings.simplefilter("ignore", ResourceWarning)
        get_tokenizer(multilingual=model.is_multilingual, num_languages=model.num_languages)
    return model.float().eval()


def read_audio(path: Path) -> np.ndarray:
    """Decode a file to 16 kHz mono float32 with the package's own decoder."""
    return decode(path.read_bytes(), uri=str(path))[0]


def align(model: whisper.Whisper, job: AlignJob) -> AlignResult:
    """Run prompt and text at once, and keep the cross-attention of the job's heads."""
    scores: dict[int, torch.Tensor] = {}
    hooks = [
        block.cross_attn.register_forward_hook(
            lambda _, __, outputs, at=at: scores.__setitem__(at, outputs[-1][0])
        )
        for at, block in enumerate(model.decoder.blocks)
    ]
    tokens = torch.tensor(job.tokens)
    with torch.no_grad(), disable_sdpa():
        logits = model(torch.tensor(job.features).float()[None], tokens[None])[0]
    for hook in hooks:
        hook.remove()
    weights = torch.stack([scores[layer][head] for layer, head in job.heads]).softmax(dim=-1)
    logprobs = logits[:-1, : job.choices].log_softmax(dim=-1)
    known = tokens[1:].clamp(max=logprobs.shape[1] - 1)
    found = logprobs.gather(1, known[:, None])[:, 0]
    found[known != tokens[1:]] = -torch.inf
    logprobs_known = tuple(found.tolist())
    if job.timing is None:
        return AlignResult(weights=weights.numpy(), logprobs=logprobs_known)
    return AlignResult(begins=token_begins(weights.numpy(), job.timing), logprobs=logprobs_known)


def align_with(model: whisper.Whisper, heads: Iterable[Sequence[int]]) -> None:
    """Let openai-whisper time words by these (layer, head) pairs."""
    mask = torch.zeros(model.dims.n_text_layer, model.dims.n_text_head, dtype=torch.bool)
    for layer, head in heads:
        mask[layer, head] = True
    model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)


def run(task: Generator[AlignJob, AlignResult, Any], model: whisper.Whisper) -> Any:
    """Drive a generator of alignment jobs to its end; returns what it returns."""
    try:
        job = next(task)
        while True:
            job = task.send(align(model, job))
    except StopIteration as stop:
        return stop.value
