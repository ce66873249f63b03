"""Temperature fallback: decodes a window at rising temperatures until it passes all thresholds."""

import math
import unicodedata
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from importlib.resources import files

from torch import Tensor

from corpus_asr.array_types import Float
from corpus_asr.confidence import is_other_language, mean_logprob_of, with_confidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.jobs import Search, Steps, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.phrases import PhraseTrie
from corpus_asr.families.whisper.config import GenerationConfig
from corpus_asr.segments import PartTranscript, Segment, Word
from corpus_asr.text.words import has_words
from corpus_asr.transcription.windows import Language, PartRequest, Window
from corpus_asr.transcription.words import DraftSegment
from corpus_asr.units import FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """Result of one decoding pass of a window, with the values that thresholds test."""

    window: Window
    number: int
    """Index of the last temperature tried."""
    temperature: float | None
    result: WindowResult
    mean_logprob: float
    compression_ratio: float


class DecodingRules(ABC):
    """Search settings of a window, its temperature fallback and the thresholds."""

    temperatures: Sequence[float | None]
    """Temperatures in order; None and 0 select the most likely tokens."""
    thresholds: DecodingSettings | GenerationConfig
    """Thresholds for fallback and silence; None disables a threshold."""
    token_rules: TokenRules
    no_speech: int | None = None
    """Token whose probability indicates silence."""
    phrases: PhraseTrie | None = None
    """Phrases preferred in every window."""
    encoded: Float[Tensor, "pos width"] | None = None
    """Encoder output of every window, if the caller has it."""

    @abstractmethod
    def search(self, window: Window, temperature: float | None) -> Search:
        """Return the search settings of a window."""

    @abstractmethod
    def seed(self, window: Window, temperature: float | None) -> int:
        """Return the random seed for sampling."""

    @abstractmethod
    def mean_logprob(self, result: WindowResult) -> float:
        """Return the value compared with `logprob_threshold`."""

    @abstractmethod
    def compression_ratio(self, result: WindowResult) -> float:
        """Return the value compared with `compression_ratio_threshold`."""

    def note(self, attempt: Attempt) -> None:  # noqa: B027 (most rules note nothing)
        """Called with each attempt before the next window is decoded."""

    def decode(self, window: Window) -> Steps[Attempt]:
        """Decode at rising temperatures until a result passes all thresholds.

        Source: Radford et al. 2022, section 4.5; openai-whisper `decode_with_fallback`.
        """
        attempts: list[Attempt] = []
        for number, temperature in enumerate(self.temperatures):
            attempt = yield from self._searched(window, number, temperature)
            window = attempt.window
            self.note(attempt)
            attempts.append(attempt)
            if not self.fails(attempt):
                return attempt
        return self.best(attempts)

    def best(self, attempts: Sequence[Attempt]) -> Attempt:
        """Return one of a window's attempts that all fail: the last one."""
        return attempts[-1]

    def resume(self, attempt: Attempt) -> Steps[Attempt]:
        """Continue an unfinished text in its window, whose encoding is reused.

        The attempt is returned unchanged if the continuation fails a threshold or repeats it.
        """
        result, window = attempt.result, attempt.window
        if len(window.prompt) + len(result.tokens) >= window.max_new_tokens:
            return attempt  # no decoder positions remain
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
        is_bad = self.fails(following) or self.fails(whole) or self.repeats(whole)
        return attempt if is_bad else whole

    def _searched(self, window: Window, number: int, temperature: float | None) -> Steps[Attempt]:
        search = self.search(window, temperature)
        # A text that repeats itself is searched again whatever follows in it.
        stops = search.stop_loops and self.retries_repeats(window, search)
        first_search = replace(search, stops_at_repeat=stops)
        attempt = yield from self._attempt(window, number, temperature, first_search)
        wider = self.wider(attempt, search)
        if wider is None:
            return attempt
        window, search = wider
        wide_attempt = yield from self._attempt(window, number, temperature, search)
        return attempt if self.is_bad(wide_attempt) and not self.is_bad(attempt) else wide_attempt

    def _judged(self, attempt: Attempt, result: WindowResult) -> Attempt:
        return replace(
            attempt,
            result=result,
            mean_logprob=self.mean_logprob(result),
            compression_ratio=self.compression_ratio(result),
        )

    def wider(self, attempt: Attempt, search: Search) -> tuple[Window, Search] | None:
        """Return a second search before the next temperature, and its window; None for none."""
        return None

    def retries_repeats(self, window: Window, search: Search) -> bool:
        """Whether `wider` searches again where a text repeats itself."""
        return False

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

    def repeats(self, attempt: Attempt) -> bool:
        """Whether a text says something twice, though it fails no threshold."""
        return False

    def is_bad(self, attempt: Attempt) -> bool:
        """Whether a text fails a threshold or says something twice."""
        return self.fails(attempt) or self.repeats(attempt)

    def fails(self, attempt: Attempt) -> bool:
        """Whether a threshold requires the next temperature."""
        limits = self.thresholds
        improbable = (
            limits.logprob_threshold is not None and attempt.mean_logprob < limits.logprob_threshold
        )
        if improbable and self.lacks_speech(attempt):
            return False  # silence: a low probability is expected; the text is dropped later
        return improbable or self.is_repetitive(attempt)

    def is_repetitive(self, attempt: Attempt) -> bool:
        """Whether a text compresses more than the threshold allows."""
        limit = self.thresholds.compression_ratio_threshold
        # A loop that was stopped early compresses less, but is still repetition.
        return limit is not None and (attempt.result.looped or attempt.compression_ratio > limit)

    def lacks_speech(self, attempt: Attempt) -> bool:
        """Whether the window probably contains no speech, regardless of its text."""
        limit, score = self.thresholds.no_speech_threshold, attempt.result.score
        return limit is not None and score is not None and score > limit


def without_last_token(attempt: Attempt) -> Attempt:
    """Remove the last token of a text; scores are unchanged."""
    result = attempt.result
    shorter = replace(result, tokens=result.tokens[:-1], logprobs=result.logprobs[:-1])
    return replace(attempt, result=shorter)


def _with_prefix(result: WindowResult, window: Window) -> WindowResult:
    # As in faster-whisper: the prefix is part of the text, with probability 1.
    prefix = window.prompt[len(window.prompt) - window.num_prefix :]
    return replace(
        result, tokens=prefix + result.tokens, logprobs=(0.0,) * len(prefix) + result.logprobs
    )


# Detected speech is padded, so hallucinated text next to it may overlap it.
_NONSPEECH_FRACTION = 0.1


# A text is uncertain whose log-probability is below this for each token, and this for its two ends:
# what begins and ends a text is less certain, which short texts consist of.
_UNCERTAIN_LOGPROB = -0.27
_UNCERTAIN_ENDS = -3.0
# So far below, a window is also decoded at whole length. In 266 clips whisper-base has 296 errors
# and tiny.en 360; with all uncertain windows at whole length 302 and 354, a sixth more is encoded.
_VERY_UNCERTAIN = 0.08
# Models may say a sentence twice, at usual probabilities: some five words.
_REPEATED_LETTERS = 24


class OpenAIRules(DecodingRules):
    """openai-whisper's scores and temperatures, and construction of a part's segments."""

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
        """Use beam search at temperature 0 only; higher temperatures sample."""
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

    def wider(self, attempt: Attempt, search: Search) -> tuple[Window, Search] | None:
        """Search uncertain windows with beams where these are auto.

        Windows that fail or say something twice, and very uncertain ones, are decoded at whole
        length if the padding is auto.
        """
        settings, window = self.settings, attempt.window
        if attempt.temperature:
            return None
        is_bad = self.is_bad(attempt)
        limit = _UNCERTAIN_LOGPROB + _UNCERTAIN_ENDS / (len(attempt.result.tokens) + 1)
        uncertain = attempt.mean_logprob < limit and not self.lacks_speech(attempt)
        wider = search
        if settings.beam_size == "auto" and (is_bad or uncertain):
            wider = replace(
                search, num_beams=settings.most_beams, length_penalty=settings.length_penalty
            )
        is_very_uncertain = attempt.mean_logprob < limit - _VERY_UNCERTAIN and wider is not search
        if settings.padding_s == "auto" and not window.resumes and (is_bad or is_very_uncertain):
            window = replace(window, num_frames=None)
        if window.num_frames == attempt.window.num_frames and wider is search:
            return None
        return window, wider

    def retries_repeats(self, window: Window, search: Search) -> bool:
        """As in the base class: with beams or at whole length, unless texts may repeat."""
        settings = self.settings
        if search.temperature or settings.compression_ratio_threshold is None:
            return False
        is_short = window.num_frames is not None and not window.resumes
        return settings.beam_size == "auto" or (settings.padding_s == "auto" and is_short)

    def best(self, attempts: Sequence[Attempt]) -> Attempt:
        """Return the likeliest attempt, of those that are not repetitive if there are any.

        A text of which none is not is cut where it begins to repeat itself.

        openai-whisper keeps the last one, which is sampled at the highest temperature; only that
        temperature is kept here, as it says how uncertain the text is.

        Source: faster-whisper `generate_with_fallback`.
        """
        varied = [attempt for attempt in attempts if not self.is_repetitive(attempt)]
        likeliest = max(varied or attempts, key=lambda attempt: attempt.mean_logprob)
        if not varied:
            likeliest = self._without_loop(likeliest)
        last = attempts[-1]
        return replace(likeliest, number=last.number, temperature=last.temperature)

    def _without_loop(self, attempt: Attempt) -> Attempt:
        """Cut a repetitive text before its first repetition.

        Its compression ratio is kept, which lowers its confidence.
        """
        tokens, logprobs = attempt.result.tokens, attempt.result.logprobs
        # Each text that repeats itself is the beginning of longer ones that do.
        num_tokens = bisect_left(
            range(len(tokens)), True, key=lambda count: says_twice(self.text(tokens[: count + 1]))
        )
        if num_tokens == len(tokens):
            return attempt
        cut = replace(
            attempt.result, tokens=tokens[:num_tokens], logprobs=logprobs[:num_tokens], looped=True
        )
        return replace(attempt, result=cut)

    def repeats(self, attempt: Attempt) -> bool:
        """As in the base class; a user who lets texts repeat sets no threshold."""
        may_repeat = self.settings.compression_ratio_threshold is None
        return not may_repeat and says_twice(self.text(attempt.result.tokens))

    def seed(self, window: Window, temperature: float | None) -> int:
        """Derive the seed from the recording or `seed`, the window and the temperature only."""
        # Rounded to a frame, so that the seed does not depend on floating-point summation.
        start_s = round(self.part.seconds(window.seek), 2)
        chosen = self.settings.seed
        of = self.part.recording_id if chosen is None else chosen
        name: Sequence[object] = (of, start_s, temperature)
        # 7 bytes, as a seed must fit a signed 64-bit integer.
        return int.from_bytes(blake2b(repr(name).encode(), digest_size=7).digest(), "big")

    def mean_logprob(self, result: WindowResult) -> float:
        """Return the mean over text and end token, which counts even if the text was cut off.

        Source: openai-whisper `decoding.py`, `sum_logprobs / (len(tokens) + 1)`.
        """
        total = math.fsum(result.logprobs) + (result.end_logprob or 0.0)
        return total / (len(result.logprobs) + 1)

    def compression_ratio(self, result: WindowResult) -> float:
        """Return the compression ratio of the text."""
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
        """Build a segment from a draft whose text tokens have `logprobs`; None if it is dropped."""
        duration_s = self.part.num_frames / FRAMES_PER_SECOND
        num_letters = sum(letter.isalnum() for letter in text)
        if duration_s < 1.0 and num_letters > _MOST_LETTERS_PER_S * duration_s:
            return None
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


def says_twice(text: str) -> bool:
    """Whether a run of `_REPEATED_LETTERS` letters and digits occurs more than once."""
    letters = "".join(letter for letter in text.casefold() if letter.isalnum())
    ends = range(_REPEATED_LETTERS, len(letters) + 1)
    return len({letters[end - _REPEATED_LETTERS : end] for end in ends}) < len(ends)


def compression_ratio(text: str) -> float:
    """Return the ratio of a text's bytes to its zlib-compressed bytes; high for repetition.

    Source: openai-whisper `utils.py`.
    """
    data = text.strip().encode()
    return len(data) / len(zlib.compress(data))


# Text on less than a second of audio with lower confidence is a hallucination: on 17 cuts with
# whisper-tiny.en, spoken text has at least 0.35, hallucinated text at most 0.04.
_LEAST_CONFIDENCE = 0.05
# Nobody says so many letters in a second: fast speech has 20 to 25. Only tells in short audio.
_MOST_LETTERS_PER_S = 30


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
    """Build a segment from a draft; None if it says nothing, or the settings drop it."""
    if not has_words(text):
        return None
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
    is_short = part.num_frames < FRAMES_PER_SECOND
    return None if is_short and made.confidence < _LEAST_CONFIDENCE else made


def _without_silence(
    part: PartRequest, words: Sequence[Word], start_s: float, end_s: float
) -> tuple[Word, ...]:
    spans = [part.without_silence(word.start_s, word.end_s) for word in words]
    return tuple(
        # Words lie within their segment.
        replace(
            word,
            start_s=min(max(first_s, start_s), end_s),
            end_s=min(max(last_s, start_s), end_s),
        )
        for word, (first_s, last_s) in zip(words, spans, strict=True)
    )


def mark_other_language(result: PartTranscript, settings: DecodingSettings) -> PartTranscript:
    """Return a result of an English-only model, marked if it is probably of another language.

    Its segments are then known hallucinations, unless English was asked for.
    """
    if settings.language != "auto" or not is_other_language(result.segments):
        return result
    segments = [replace(segment, known_hallucination=True) for segment in result.segments]
    kept_segments = () if settings.drop_known_hallucinations else tuple(segments)
    return replace(result, segments=kept_segments, other_language=True)


# Texts that Whisper produces without speech: subtitle credits and farewells. `Thank you.`, `you`
# and `Bye.` are reported as often but not listed, since people say them. Source: sentences that
# users report repeatedly, mainly in the discussions of github.com/openai/whisper; compiled from
# common knowledge, neither complete nor measured here.
HALLUCINATION_PHRASES = files("corpus_asr.text").joinpath("hallucination_phrases")
HALLUCINATION_LANGUAGES = (
    "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "zh",
)  # fmt: skip


def is_known_hallucination(text: str) -> bool:
    """Whether the whole text is a listed sentence of any language, as detection fails on noise.

    Case, punctuation and spacing are ignored.
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
