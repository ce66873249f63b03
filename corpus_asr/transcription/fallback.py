"""How one window is decoded, again at a higher temperature while it fails a threshold, and kept."""

import math
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from importlib.resources import files

from torch import Tensor

from corpus_asr.array_types import Float
from corpus_asr.confidence import mean_logprob_of, with_confidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.phrases import PhraseTrie
from corpus_asr.decoding.protocols import Search, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.tasks import Steps
from corpus_asr.families.whisper.config import GenerationConfig
from corpus_asr.segments import Segment, Word
from corpus_asr.transcription.windows import Language, PartRequest, Window
from corpus_asr.transcription.words import DraftSegment
from corpus_asr.units import FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """A window decoded once, with what the thresholds look at."""

    window: Window
    number: int
    """How many temperatures were tried before."""
    temperature: float | None
    result: WindowResult
    mean_logprob: float
    compression_ratio: float


class DecodingRules(ABC):
    """How one window is decoded, and again at the next temperature while it fails a threshold."""

    temperatures: Sequence[float | None]
    """Tried in turn; None and 0 take the likeliest tokens."""
    thresholds: DecodingSettings | GenerationConfig
    """When a window is decoded again, and when it is silence; None switches a threshold off."""
    token_rules: TokenRules
    no_speech: int | None = None
    """The token whose probability tells silence."""
    phrases: PhraseTrie | None = None
    """Preferred in every window."""
    encoded: Float[Tensor, "pos width"] | None = None
    """What the encoder made of every window, where the caller has it already."""

    @abstractmethod
    def search(self, window: Window, temperature: float | None) -> Search:
        """How a window is searched."""

    @abstractmethod
    def seed(self, window: Window, temperature: float | None) -> int:
        """Return the seed of the noise by which tokens are sampled."""

    @abstractmethod
    def mean_logprob(self, result: WindowResult) -> float:
        """Return what `logprob_threshold` is compared with."""

    @abstractmethod
    def compression_ratio(self, result: WindowResult) -> float:
        """Return what `compression_ratio_threshold` is compared with."""

    def note(self, attempt: Attempt) -> None:  # noqa: B027 (most rules note nothing)
        """Take note of an attempt before anything else is decoded."""

    def decode(self, window: Window) -> Steps[Attempt]:
        """Climb the temperatures until a result is good enough.

        Source: Radford et al. 2022, section 4.5; openai-whisper `decode_with_fallback`.
        """
        for number, temperature in enumerate(self.temperatures):
            attempt = yield from self._searched(window, number, temperature)
            self.note(attempt)
            if not self.fails(attempt):
                break
        return attempt

    def resume(self, attempt: Attempt) -> Steps[Attempt]:
        """Let a text that was left unfinished say more of its window, which is encoded already.

        It stays as it was where what follows fails a threshold.
        """
        result, window = attempt.result, attempt.window
        if len(window.prompt) + len(result.tokens) >= window.max_new_tokens:
            return attempt  # the decoder holds no more
        prompt = window.prompt[: len(window.prompt) - window.num_prefix]
        following = yield from self._searched(
            replace(
                window, prompt=prompt + result.tokens, num_prefix=len(result.tokens), resumes=True
            ),
            attempt.number,
            attempt.temperature,
        )
        more = following.result
        whole = self._judged(
            attempt,
            replace(
                more, tokens=result.tokens + more.tokens, logprobs=result.logprobs + more.logprobs
            ),
        )
        return attempt if self.fails(following) or self.fails(whole) else whole

    def _searched(self, window: Window, number: int, temperature: float | None) -> Steps[Attempt]:
        search = self.search(window, temperature)
        attempt = yield from self._attempt(window, number, temperature, search)
        wider = self.wider(attempt, search)
        if wider is None:
            return attempt
        wide_attempt = yield from self._attempt(window, number, temperature, wider)
        # A text that passes stays, if that of the beams does not.
        return attempt if self.fails(wide_attempt) and not self.fails(attempt) else wide_attempt

    def _judged(self, attempt: Attempt, result: WindowResult) -> Attempt:
        return replace(
            attempt,
            result=result,
            mean_logprob=self.mean_logprob(result),
            compression_ratio=self.compression_ratio(result),
        )

    def wider(self, attempt: Attempt, search: Search) -> Search | None:
        """How a window is searched once more before the next temperature; None: not at all."""
        return None

    def _attempt(
        self, window: Window, number: int, temperature: float | None, search: Search
    ) -> Steps[Attempt]:
        result: WindowResult = yield WindowJob(
            features=window.features,
            window=window.name,
            prompt=window.prompt,
            rules=replace(self.token_rules, resumes=True) if window.resumes else self.token_rules,
            max_new_tokens=window.max_new_tokens,
            search=search,
            seed=self.seed(window, temperature),
            score_token=self.no_speech,
            score_position=window.start_position,
            num_prefix=window.num_prefix,
            num_frames=window.num_frames,
            encoded=self.encoded,
        )
        if not window.resumes:
            result = _with_prefix(result, window)
        return Attempt(
            window=window,
            number=number,
            temperature=temperature,
            result=result,
            mean_logprob=self.mean_logprob(result),
            compression_ratio=self.compression_ratio(result),
        )

    def fails(self, attempt: Attempt) -> bool:
        """Whether a threshold asks for the next temperature."""
        limits = self.thresholds
        improbable = (
            limits.logprob_threshold is not None and attempt.mean_logprob < limits.logprob_threshold
        )
        if improbable and self.lacks_speech(attempt):
            return False  # silence: an improbable text is expected, and is dropped later
        # A loop that was cut short no longer compresses so well; it is repetition all the same.
        return improbable or (
            limits.compression_ratio_threshold is not None
            and (
                attempt.result.looped
                or attempt.compression_ratio > limits.compression_ratio_threshold
            )
        )

    def lacks_speech(self, attempt: Attempt) -> bool:
        """Whether the window probably holds no speech, whatever its text."""
        limit, score = self.thresholds.no_speech_threshold, attempt.result.score
        return limit is not None and score is not None and score > limit


def without_last_token(attempt: Attempt) -> Attempt:
    """Take back the token that a text ends with; scores stay as they were."""
    result = attempt.result
    shorter = replace(result, tokens=result.tokens[:-1], logprobs=result.logprobs[:-1])
    return replace(attempt, result=shorter)


def _with_prefix(result: WindowResult, window: Window) -> WindowResult:
    # As in faster-whisper: what was given is part of the text, and certain.
    prefix = window.prompt[len(window.prompt) - window.num_prefix :]
    return replace(
        result, tokens=prefix + result.tokens, logprobs=(0.0,) * len(prefix) + result.logprobs
    )


# Detected speech is padded, so that what was invented beside it may touch it.
_NONSPEECH_FRACTION = 0.1


UNCERTAIN_LOGPROB = -0.3
"""Mean log-probability below which `beam_size` auto follows beams."""


class OpenAIRules(DecodingRules):
    """openai-whisper's scores and temperatures, and the segments made of a part's windows."""

    def __init__(
        self,
        part: PartRequest,
        settings: DecodingSettings,
        text: Callable[[Sequence[int]], str],
    ) -> None:
        self.part = part
        self.settings = settings
        self.text = text
        self.temperatures = settings.temperature
        self.thresholds = settings

    def search(self, window: Window, temperature: float | None) -> Search:
        """Follow beams at temperature 0 alone: above it, sampling takes their place."""
        settings = self.settings
        beams = settings.beam_size if settings.beam_size != "auto" and not temperature else 1
        return Search(
            temperature=temperature or 0.0,
            repetition_penalty=settings.repetition_penalty,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            stop_loops=settings.stop_loops,
            phrases=self.phrases,
            num_beams=beams,
            length_penalty=settings.length_penalty if beams > 1 else 1.0,
        )

    def wider(self, attempt: Attempt, search: Search) -> Search | None:
        """Follow beams where the likeliest text is uncertain, if the number of beams is left to us.

        The window is encoded already, and what fails a threshold seldom has to be sampled then.
        """
        settings = self.settings
        if settings.beam_size != "auto" or attempt.temperature:
            return None
        uncertain = attempt.mean_logprob < UNCERTAIN_LOGPROB and not self.lacks_speech(attempt)
        if not uncertain and not self.fails(attempt):
            return None
        return replace(
            search, num_beams=settings.most_beams, length_penalty=settings.length_penalty
        )

    def seed(self, window: Window, temperature: float | None) -> int:
        """Name recording or `seed`, window and temperature, and nothing about this run."""
        # Rounded to a frame, so that the name does not depend on how the seconds were summed.
        start_s = round(self.part.seconds(window.seek), 2)
        chosen = self.settings.seed
        of = self.part.recording_id if chosen is None else chosen
        name: Sequence[object] = (of, start_s, temperature)
        # 7 bytes, as a seed must fit a signed 64-bit integer.
        return int.from_bytes(blake2b(repr(name).encode(), digest_size=7).digest(), "big")

    def mean_logprob(self, result: WindowResult) -> float:
        """Average over the text and the end token, which counts even when cut off.

        Source: openai-whisper `decoding.py`, `sum_logprobs / (len(tokens) + 1)`.
        """
        total = math.fsum(result.logprobs) + (result.end_logprob or 0.0)
        return total / (len(result.logprobs) + 1)

    def compression_ratio(self, result: WindowResult) -> float:
        """Return that of the text."""
        return compression_ratio(self.text(result.tokens))

    def segment(
        self,
        attempt: Attempt,
        draft: DraftSegment,
        *,
        text: str,
        logprobs: Sequence[float],
        task: str,
        no_speech_prob: float | None,
    ) -> Segment | None:
        """Make a segment of a draft whose text tokens have `logprobs`; None if it is to go."""
        return finished_segment(
            self.part,
            self.settings,
            draft,
            text=text,
            language=attempt.window.language,
            task=task,
            mean_logprob=attempt.mean_logprob,
            text_logprob=mean_logprob_of(logprobs),
            compression_ratio=attempt.compression_ratio,
            temperature=attempt.temperature or 0.0,
            no_speech_prob=no_speech_prob,
        )


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of its zlib form: repetition compresses well.

    Source: openai-whisper `utils.py`.
    """
    data = text.strip().encode()
    return len(data) / len(zlib.compress(data))


# Text of less than a second of audio that is less sure is invented: of 17 cuts what is said has
# 0.35 and more in whisper-tiny.en, an invented sentence 0.04 and less.
_LEAST_CONFIDENCE = 0.05


def finished_segment(
    part: PartRequest,
    settings: DecodingSettings,
    draft: DraftSegment,
    *,
    text: str,
    language: Language,
    task: str,
    mean_logprob: float,
    text_logprob: float | None,
    compression_ratio: float,
    temperature: float = 0.0,
    no_speech_prob: float | None = None,
) -> Segment | None:
    """Make a segment of a draft; None if the settings drop what it says."""
    fraction = part.speech_fraction(draft.start_s, draft.end_s)
    nonspeech = fraction is not None and fraction < _NONSPEECH_FRACTION
    if nonspeech and settings.drop_nonspeech:
        return None
    is_hallucination = is_known_hallucination(text)
    if is_hallucination and settings.drop_known_hallucinations:
        return None
    start_s, end_s = part.without_silence(draft.start_s, draft.end_s)
    words = _without_silence(part, draft.words, start_s, end_s)
    made = with_confidence(
        Segment(
            start_s=start_s,
            end_s=end_s,
            text=text,
            tokens=draft.tokens,
            language=language.code,
            language_probability=language.probability,
            task=task,
            confidence=0.0,
            avg_logprob=mean_logprob,
            text_logprob=text_logprob,
            no_speech_prob=no_speech_prob,
            compression_ratio=compression_ratio,
            temperature=temperature,
            speech_fraction=fraction,
            known_hallucination=is_hallucination,
            words=words if settings.word_timestamps else None,
        )
    )
    is_invented = made.confidence < _LEAST_CONFIDENCE and part.num_frames < FRAMES_PER_SECOND
    return None if is_invented else made


def _without_silence(
    part: PartRequest, words: Sequence[Word], start_s: float, end_s: float
) -> tuple[Word, ...]:
    spans = [part.without_silence(word.start_s, word.end_s) for word in words]
    return tuple(
        # They lie within their segment.
        replace(
            word,
            start_s=min(max(first_s, start_s), end_s),
            end_s=min(max(last_s, start_s), end_s),
        )
        for word, (first_s, last_s) in zip(words, spans, strict=True)
    )


# What Whisper writes where nobody speaks: credits and farewells of subtitles. `Thank you.`,
# `you` and `Bye.` are reported as often and are not listed: people say them.
# Source: sentences that users report again and again, above all in the discussions of
# github.com/openai/whisper; written down from common knowledge, neither complete nor measured here.
HALLUCINATION_PHRASES = files("corpus_asr.text").joinpath("hallucination_phrases")
HALLUCINATION_LANGUAGES = (
    "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "zh",
)  # fmt: skip


def is_known_hallucination(text: str) -> bool:
    """Whether the whole text is a listed sentence, in any language: on noise that is a guess, too.

    Case, punctuation and spacing do not count.
    """
    return _folded(text) in _folded_phrases()


def known_hallucinations(language: str) -> tuple[str, ...]:
    """Return the sentences listed for one of `HALLUCINATION_LANGUAGES`."""
    path = HALLUCINATION_PHRASES.joinpath(f"{language}.txt")
    return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line)


@cache
def _folded_phrases() -> frozenset[str]:
    return frozenset(
        _folded(phrase)
        for language in HALLUCINATION_LANGUAGES
        for phrase in known_hallucinations(language)
    )


def _folded(text: str) -> str:
    letters = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in letters if unicodedata.category(letter)[0] in "LMN")
