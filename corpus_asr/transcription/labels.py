"""Labels the windows of a part: language identification, or the classes of a classifier."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from corpus_asr.array_types import Float
from corpus_asr.audio.parts import language_window_starts
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.run import ClassificationSettings
from corpus_asr.decoding.device import set_threads
from corpus_asr.decoding.jobs import Gather, Search, Steps, TokenRules, WindowJob
from corpus_asr.decoding.one_pass import Recognition, WindowToRead
from corpus_asr.families.loading import load_classifier, load_slot_model
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.segments import Label, LabelledWindow, PartLabels, PartTranscript
from corpus_asr.threads import run_apart
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import PartRequest, chunk_ranges
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_FRAMES

# Labels kept of a part's mean probabilities. The rest of the mass is split among the other labels,
# which other parts of the recording are unlikely to make the top one.
MAX_PART_LABELS = 32

Probabilities = Float[Tensor, " label"]


@dataclass(frozen=True, slots=True)
class _Window:
    start: int
    end: int
    content_end: int
    """End of the audio that is encoded after `end`, as far as the window has room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLabeller(ABC):
    """Labels parts with one checkpoint; implements `PartTranscriber`."""

    settings: ClassificationSettings
    names: tuple[str, ...]

    @abstractmethod
    def _label(self, part: PartRequest, windows: list[_Window]) -> Generator[Any, Any, Any]:
        """Return the probabilities of the labels of each window."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Empty: languages are among the labels instead."""
        return ()

    def check(self, settings: DecodingSettings) -> None:
        """Accept any settings: nothing is decoded."""
        del settings

    def transcribe(
        self, part: PartRequest, settings: DecodingSettings
    ) -> Generator[Any, Any, PartTranscript]:
        """Label every window independently."""
        windows = self._windows(part)
        probabilities: list[Probabilities] = yield from self._label(part, windows)
        weights = [_weight_s(part, window) for window in windows]
        labelled = tuple(
            LabelledWindow(
                start_s=part.seconds(window.start),
                end_s=part.seconds(window.end),
                weight_s=weight_s,
                labels=self._likeliest(scores, self.settings.top_k),
            )
            for window, weight_s, scores in zip(windows, weights, probabilities, strict=True)
        )
        means: tuple[Label, ...] = ()
        if windows:
            shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
            mean = (torch.stack(probabilities) * shares.unsqueeze(1)).sum(dim=0)
            means = self._likeliest(mean, MAX_PART_LABELS)
        spoken = means[0] if means and self.settings.task == "language" else (None, None)
        return PartTranscript(
            language=spoken[0],
            language_probability=spoken[1],
            labels=PartLabels(windows=labelled, means=means, weight_s=sum(weights)),
        )

    def _windows(self, part: PartRequest) -> list[_Window]:
        end = part.num_frames
        if self.settings.windows == "all":
            ranges = chunk_ranges(part, [(0, end)] if end else [])
            return [_Window(first, last, last) for first, last in ranges]
        if part.language_features is not None or not end:
            return []  # an earlier part has the first speech
        speech = (
            None if part.speech is None else [(span.start_s, span.end_s) for span in part.speech]
        )
        starts_s = language_window_starts(speech, start_s=part.start_s, end_s=part.end_s)
        starts = [part.frame(start_s) for start_s in starts_s]
        return [_Window(start, min(start + WINDOW_FRAMES, end), end) for start in starts]

    def _likeliest(self, probabilities: Probabilities, count: int) -> tuple[Label, ...]:
        # Stable sort: equal probabilities keep the order of names on every machine.
        order = probabilities.argsort(descending=True, stable=True)[:count].tolist()
        return tuple((self.names[at], float(probabilities[at])) for at in order)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageLabeller(PartLabeller):
    """Predicts the language as the first token of a window, of those of the languages.

    Source: Radford et al. 2022, section 2.3; openai-whisper `detect_language`.
    """

    rules: TokenRules
    """Rules whose `only` is the tokens of the languages."""
    prompt: tuple[int, ...]

    def _label(self, part: PartRequest, windows: list[_Window]) -> Steps[list[Probabilities]]:
        labels: list[Probabilities] = yield Gather(self._ask(part, window) for window in windows)
        return labels

    def _ask(self, part: PartRequest, window: _Window) -> Steps[Probabilities]:
        result = yield WindowJob(
            features=part.window_in_silence(window.start, window.content_end),
            window=(window.start, window.end),
            prompt=self.prompt,
            rules=self.rules,
            max_new_tokens=1,
            search=Search(keep_scores=True),
        )
        assert result.scores is not None, "scores were requested"
        scores: Probabilities = result.scores[0, list(self.rules.only)].double()
        return scores.softmax(dim=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLabeller(PartLabeller):
    """Reads each window once with a classifier."""

    exclusive: bool
    """Whether exactly one class applies (softmax); else each may apply (sigmoid)."""

    def _label(
        self, part: PartRequest, windows: list[_Window]
    ) -> Generator[Recognition, list[Float[Tensor, " label"]], list[Probabilities]]:
        scores = yield Recognition(
            windows=[
                WindowToRead(
                    num_frames=WINDOW_FRAMES,
                    read=partial(part.window_in_silence, window.start, window.content_end),
                )
                for window in windows
            ],
            language=None,
        )
        squash = partial(torch.softmax, dim=0) if self.exclusive else torch.sigmoid
        return [squash(each.double()) for each in scores]


def part_labeller(folder: Path, settings: ClassificationSettings) -> PartLabeller:
    """Load a checkpoint's labels: languages, or the classes of a classifier."""
    if settings.task == "language":
        prompt_format = PromptFormat.from_folder(folder)
        names = tuple(settings.languages) or tuple(prompt_format.languages)
        return LanguageLabeller(
            settings=settings,
            names=names,
            rules=prompt_format.language_rules(names),
            prompt=(prompt_format.start,),
        )
    config = resolve(family_of(folder).config).from_pretrained(folder)
    return ClassLabeller(
        settings=settings,
        names=tuple(str(config.id2label.get(i, i)) for i in range(config.num_labels)),
        exclusive=config.problem_type != "multi_label_classification",
    )


def _weight_s(part: PartRequest, window: _Window) -> float:
    # Positive: windows without detected speech keep a small weight, to avoid 0/0.
    start_s, end_s = part.seconds(window.start), part.seconds(window.end)
    length_s = max(end_s - start_s, 1 / FRAMES_PER_SECOND)
    fraction = part.speech_fraction(start_s, start_s + length_s)
    return length_s if fraction is None else max(length_s * fraction, 1 / FRAMES_PER_SECOND)


def label_engine(
    folder: Path,
    *,
    classification: ClassificationSettings,
    device: str = "auto",
    dtype: str = "auto",
    slots: int | Literal["auto"] = "auto",
    num_threads: int | None = None,
    gpu_fraction: float = 1.0,
    reproducible: bool = False,
) -> Engine:
    """Load a checkpoint, as `Engine.from_folder` does, into an engine that labels parts."""
    set_threads(num_threads)
    labeller = part_labeller(folder, classification)
    load = load_classifier if classification.task == "classify" else load_slot_model
    model = run_apart(lambda: load(folder, device=device, dtype=dtype))
    return Engine(
        model,
        labeller,
        decoding=DecodingSettings(beam_size=1),
        slots=slots,
        gpu_fraction=gpu_fraction,
        reproducible=reproducible,
    )
