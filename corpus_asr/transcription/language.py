"""Which language is spoken, asked of the model in one window.

In: a part and the languages to choose among. Out: a code and its probability among them.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import WindowJob, WindowResult
from corpus_asr.transcription.dialect import Dialect
from corpus_asr.transcription.scores import confidence
from corpus_asr.transcription.windows import PartRequest, pad_window
from corpus_asr.units import WINDOW_FRAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language and how sure the model is; no probability where it was given."""

    code: str | None
    probability: float | None


def choices(dialect: Dialect, settings: DecodingSettings) -> Sequence[str]:
    """The languages to detect among; empty when there is nothing to detect."""
    if not dialect.languages:
        return ()
    if settings.language == "auto":
        return tuple(dialect.languages)
    return () if isinstance(settings.language, str) else settings.language


def find_language(
    part: PartRequest, dialect: Dialect, settings: DecodingSettings
) -> Generator[WindowJob, WindowResult, Language]:
    """Detect the recording's language, unless it is given.

    The window is the recording's first with speech, the same for all its parts, so that they agree
    whichever worker gets them. Detection is decoding with only language tokens allowed.

    Source: Radford et al. 2022, section 2.3; openai-whisper `detect_language`.
    """
    among = choices(dialect, settings)
    if not among:
        given = settings.language if isinstance(settings.language, str) else None
        return Language(code=given if dialect.languages else "en", probability=None)
    if len(among) == 1:
        return Language(code=among[0], probability=None)

    if part.language_features is not None:
        window, features = (-1, -1), pad_window(part.language_features, part.pad_value)
    else:
        start = part.frame(part.language_window_start_s or part.start_s)
        end = part.num_frames
        # The seek loop's first window is the same one unless it is filled up otherwise.
        same = part.fits_one_window or start + WINDOW_FRAMES <= end
        window, features = (start, end if same else -1), part.window_in_silence(start, end)
    result = yield WindowJob(
        features=features,
        window=window,
        prompt=(dialect.start,),
        rules=dialect.language_rules(among),
        max_new_tokens=1,
    )
    codes = {dialect.languages[code]: code for code in among}
    return Language(code=codes[result.tokens[0]], probability=confidence(result.logprobs))
