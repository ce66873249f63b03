"""Which language is spoken, asked of the model in one window or in several."""

from collections import defaultdict
from collections.abc import Generator, Sequence

import numpy as np
import torch

from corpus_asr.array_types import Float16
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import Search, WindowJob, WindowResult
from corpus_asr.languages import language_window_starts
from corpus_asr.segments import Segment
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import Language, PartRequest, frames_to_encode
from corpus_asr.units import WINDOW_FRAMES

LanguageWindow = tuple[tuple[int, ...], Float16[np.ndarray, "mel frame"], int | None]
"""A window to ask in: its name among its task's, its features, and frames to encode or None."""


def given_language(prompt_format: PromptFormat, settings: DecodingSettings) -> Language | None:
    """The language where there is nothing to ask; None where it must be detected."""
    among = _choices(prompt_format, settings)
    if len(among) > 1:
        return None
    if among:
        return Language(code=among[0], probability=None)
    given = settings.language if isinstance(settings.language, str) else None
    return Language(code=given if prompt_format.languages else "en", probability=None)


def find_language(
    part: PartRequest, prompt_format: PromptFormat, settings: DecodingSettings
) -> Generator[WindowJob, WindowResult, Language]:
    """Detect the language of the recording, or of this part of it, unless it is given.

    A recording is judged by windows of its first part with speech, the same for all its parts, so
    that they agree whichever worker gets them.
    """
    given = given_language(prompt_format, settings)
    if given is not None:
        return given
    carried = settings.language_mode == "recording" and part.language_features is not None
    windows = _carried_windows(part) if carried else _own_windows(part, settings.padding_s)
    return (yield from ask_language(windows, prompt_format, settings))


def ask_language(
    windows: Sequence[LanguageWindow], prompt_format: PromptFormat, settings: DecodingSettings
) -> Generator[WindowJob, WindowResult, Language]:
    """Choose the language that is likeliest on average over windows.

    Asking is decoding with only language tokens allowed.

    Source: Radford et al. 2022, section 2.3; openai-whisper `detect_language`, for one window.
    """
    among = _choices(prompt_format, settings)
    rules = prompt_format.language_rules(among)
    total = np.zeros(len(among))
    for name, features, num_frames in windows:
        result = yield WindowJob(
            features=features,
            num_frames=num_frames,
            window=name,
            prompt=(prompt_format.start,),
            rules=rules,
            max_new_tokens=1,
            search=Search(keep_scores=True),
        )
        assert result.scores is not None, "scores were requested"
        total += torch.softmax(result.scores[0, list(rules.only)].double(), dim=0).numpy()
    best = int(total.argmax())
    return Language(code=among[best], probability=float(total[best]) / len(windows))


def spoken_most(segments: Sequence[Segment]) -> Language | None:
    """The language of most of the time, where segments have their own; None without segments."""
    seconds: defaultdict[str | None, float] = defaultdict(float)
    weighted: defaultdict[str | None, float] = defaultdict(float)
    for segment in segments:
        length_s = segment.end_s - segment.start_s
        probability = segment.language_probability
        seconds[segment.language] += length_s
        weighted[segment.language] += length_s * (1.0 if probability is None else probability)
    if not seconds:
        return None
    code = max(seconds, key=lambda known: seconds[known])
    return Language(code=code, probability=weighted[code] / seconds[code])


def _choices(prompt_format: PromptFormat, settings: DecodingSettings) -> Sequence[str]:
    # Empty where there is nothing to detect.
    if not prompt_format.languages:
        return ()
    if settings.language == "auto":
        return tuple(prompt_format.languages)
    return () if isinstance(settings.language, str) else settings.language


def _carried_windows(part: PartRequest) -> list[LanguageWindow]:
    # Padded where they were cut, so they are encoded whole.
    assert part.language_features is not None, "the caller has looked"
    windows = part.language_features.reshape(-1, WINDOW_FRAMES, part.language_features.shape[1])
    return [((-1, number), window.T, None) for number, window in enumerate(windows)]


def _own_windows(part: PartRequest, padding_s: float | None) -> list[LanguageWindow]:
    speech = None if part.speech is None else [(span.start_s, span.end_s) for span in part.speech]
    end = part.num_frames
    windows: list[LanguageWindow] = []
    for start_s in language_window_starts(speech, start_s=part.start_s, end_s=part.end_s):
        start = part.frame(start_s)
        # The seek loop's first window is the same one unless it is filled up otherwise.
        same = part.fits_one_window or start + WINDOW_FRAMES <= end
        # What other parts are to agree on is encoded whole: they do not know where its audio ends.
        frames = frames_to_encode(end - start, padding_s) if part.fits_one_window else None
        name = start, end if same else -1
        windows.append((name, part.window_in_silence(start, end), frames))
    return windows
