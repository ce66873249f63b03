"""Evaluation: validation windows in, word and character error rates out.

Texts are normalized by Whisper's normalizers, as in `corpus-asr evaluate`. Search is greedy, by
the engine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.report.accuracy.scoring import Errors, Hypothesis, Reference, score, total
from corpus_asr.spectral.mel import log_mel
from corpus_asr.training.audio_cache import AudioCache
from corpus_asr.training.windows import runs_of
from corpus_asr.units import WINDOW_SAMPLES

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result for one model; its fields are keys of log.jsonl."""

    windows: int
    wer: float | None
    """Word error rate; None if no reference has words."""
    cer: float | None
    hallucinated_words: int
    """Number of words in hypotheses of windows without speech."""
    examples: tuple[tuple[str, str], ...]
    """Reference and hypothesis of the first windows."""


class Evaluator:
    """Evaluates models on the same windows.

    Args:
        cache: runs of its utterances are windows, the first ones.
        tokenizer: of the network.
        max_windows: how many.
        batch_size: decoded side by side.
        task: `transcribe` or `translate`.
        timestamps: whether times are asked for too.
        max_tokens: of a run.
    """

    def __init__(
        self,
        cache: AudioCache,
        tokenizer: WhisperTokenizer,
        *,
        max_windows: int,
        batch_size: int,
        task: str,
        timestamps: bool,
        max_tokens: int,
    ) -> None:
        self._cache = cache
        self._tokenizer = tokenizer
        first, end = runs_of(cache, longest=WINDOW_SAMPLES, max_tokens=max_tokens)
        self._runs = list(zip(first.tolist(), end.tolist(), strict=True))[:max_windows]
        self._batch_size = batch_size
        self._task = task
        self._timestamps = timestamps

    @torch.no_grad()
    def __call__(self, network: WhisperForConditionalGeneration) -> Evaluation:
        """Decode all windows and compare."""
        network.eval()
        words, letters = Errors(), Errors()
        hallucinated = 0
        examples: list[tuple[str, str]] = []
        for language, reference, hypothesis in self._hypotheses(network):
            found = score(
                Reference(uri="", text=reference, language=language),
                Hypothesis(text=hypothesis, language=language, duration_s=0.0),
            )
            words, letters = total([words, found.words]), total([letters, found.characters])
            hallucinated += 0 if reference else found.words.insertions
            if len(examples) < _SHOWN:
                examples.append((reference, hypothesis))
        return Evaluation(
            windows=len(self._runs),
            wer=words.rate,
            cer=letters.rate,
            hallucinated_words=hallucinated,
            examples=tuple(examples),
        )

    def _hypotheses(
        self, network: WhisperForConditionalGeneration
    ) -> Iterator[tuple[str | None, str, str]]:
        """Yield language, reference and hypothesis of each window."""
        for runs in self._batches():
            language = self._cache.language(runs[0][0])
            features = np.stack([self._features(run, network) for run in runs])
            asked: dict[str, Any] = {"language": language, "task": self._task}
            ids = network.generate(
                torch.from_numpy(features).to(network.device, network.dtype),
                return_timestamps=self._timestamps,
                **(asked if self._tokenizer.is_multilingual else {}),
            )
            texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
            for (first, end), hypothesis in zip(runs, texts, strict=True):
                reference = " ".join(filter(None, map(self._cache.text, range(first, end))))
                yield language, reference, hypothesis.strip()

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield runs of one language."""
        batch: list[tuple[int, int]] = []
        for run in self._runs:
            other = batch and self._cache.language(run[0]) != self._cache.language(batch[0][0])
            if other or len(batch) == self._batch_size:
                yield batch
                batch = []
            batch.append(run)
        if batch:
            yield batch

    def _features(
        self, run: tuple[int, int], network: WhisperForConditionalGeneration
    ) -> np.ndarray:
        begin, end = int(self._cache.start[run[0]]), self._cache.ends(slice(*run))
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        found = self._cache.samples(begin, min(end, begin + WINDOW_SAMPLES))
        samples[: found.size] = found
        return log_mel(samples, num_mel_bins=network.config.num_mel_bins)
