"""Word and character error rates on validation windows, decoded greedily.

Texts are normalized by Whisper's normalizers, as in `corpus-asr evaluate`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from corpus_asr.config.finetune import EvaluationSettings, WindowSettings
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.features.mel import log_mel
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.report.accuracy.scoring import Errors, Hypothesis, Reference, score, total
from corpus_asr.training.audio_cache import AudioCache
from corpus_asr.training.windows import runs_of
from corpus_asr.units import WINDOW_SAMPLES

_NUM_EXAMPLES = 5  # texts in a line of the log


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
    """Evaluates models on the same windows."""

    def __init__(
        self,
        cache: AudioCache,
        tokenizer: WhisperTokenizer,
        settings: EvaluationSettings,
        *,
        windows: WindowSettings,
        max_tokens: int,
    ) -> None:
        self._cache = cache
        self._tokenizer = tokenizer
        self._batch_size = settings.per_device_eval_batch_size
        self._windows = windows
        first, end = runs_of(cache, longest=WINDOW_SAMPLES, max_tokens=max_tokens)
        self._runs = list(zip(first.tolist(), end.tolist(), strict=True))[: settings.max_windows]

    @torch.no_grad()
    def __call__(self, network: WhisperForConditionalGeneration) -> Evaluation:
        """Decode all windows and compare."""
        network.eval()
        words, letters = Errors(), Errors()
        hallucinated = 0
        examples: list[tuple[str, str]] = []
        for language, reference, hypothesis in self._hypotheses(network):
            errors = score(
                Reference(uri="", text=reference, language=language),
                Hypothesis(text=hypothesis, language=language, duration_s=0.0),
            )
            words, letters = total([words, errors.words]), total([letters, errors.characters])
            hallucinated += 0 if reference else errors.words.insertions
            if len(examples) < _NUM_EXAMPLES:
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
        options: dict[str, Any] = {"return_timestamps": self._windows.timestamp_probability > 0}
        for runs in self._batches():
            language = self._cache.language(runs[0][0])
            features = np.stack([self._features(run, network) for run in runs])
            if self._tokenizer.is_multilingual:
                options |= {"language": language, "task": self._windows.task}
            ids = network.generate(
                torch.from_numpy(features).to(network.device, network.dtype), **options
            )
            texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
            for (first, end), hypothesis in zip(runs, texts, strict=True):
                reference = " ".join(filter(None, map(self._cache.text, range(first, end))))
                yield language, reference, hypothesis.strip()

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield runs of one language."""
        for _, group in groupby(self._runs, key=lambda run: self._cache.language(run[0])):
            runs = list(group)
            for first in range(0, len(runs), self._batch_size):
                yield runs[first : first + self._batch_size]

    def _features(
        self, run: tuple[int, int], network: WhisperForConditionalGeneration
    ) -> np.ndarray:
        begin, end = int(self._cache.start[run[0]]), self._cache.ends(slice(*run))
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        audio = self._cache.samples(begin, min(end, begin + WINDOW_SAMPLES))
        samples[: audio.size] = audio
        return log_mel(samples, num_mel_bins=network.config.num_mel_bins)
