"""Word times of a part by forced alignment with another checkpoint, for any recognition model.

Words of recognized segments or of a known text are grouped into runs without a long pause. Each run
is aligned with its audio up to the middle of the surrounding pauses, so initial times need only be
accurate to within a pause. Unrecognized words of a known text are kept if the audio supports them.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from corpus_asr.array_types import Float16
from corpus_asr.confidence import with_confidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.recognizer import RecognizedWord
from corpus_asr.errors import AlignmentError, ConfigError
from corpus_asr.families.loading import COMPUTE_DTYPES, resolve_device, resolve_dtype
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.segments import PartTranscript, Segment, Word
from corpus_asr.transcription.text_places import (
    PlacedWord,
    TextPlaces,
    TextPosition,
    TextWords,
    spread_evenly,
    stretches,
    words_of,
    words_to_read,
)
from corpus_asr.transcription.windows import KnownText, Language, PartRequest, clip_ranges
from corpus_asr.units import FRAMES_PER_SECOND

# Words further apart are separated by silence or by speech outside the text: no run spans the gap.
_PAUSE_S = 2.0
# Within longer silence only the margins are scored.
_LONG_PAUSE_S = 10.0
# Maximum margin before the first word of a run and after its last one; at most half of the pause.
_MARGIN_S = 2.0
# Least probability of an unrecognized word of a known text that is kept. Tokens that are not spoken
# have 0.001 or less each. Not measured: no trained checkpoint was available.
_LEAST_PROBABILITY = 0.05
# Maximum alignment passes; each pass aligns the words that the previous one kept.
_ROUNDS = 3
# Floor of a probability, so that its logarithm is finite.
_FLOOR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class _TextSpan:
    """Words that are aligned together, with an approximate time span."""

    index: int | None
    """Index of a recognized segment, or of the word in the text."""
    start_s: float
    end_s: float
    words: tuple[str, ...]
    certain: bool = True
    """Whether the words are kept regardless of their probability."""


_Placed = tuple[_TextSpan, list[Word]]


class WordAligner(Protocol):
    """A checkpoint that aligns words with audio; see `Family.word_aligner`."""

    feature_kind: str
    position_s: float
    """Duration in seconds of a row of scores."""

    def scores(self, part: Float16[np.ndarray, "frame mel"]) -> Any:
        """Return what `place` reads, in rows that can be cut: scores, or the features."""

    def knows(self, words: Sequence[str]) -> bool:
        """Whether any of these words can be aligned."""

    def place(self, scores: Any, words: Sequence[str]) -> list[RecognizedWord]:
        """Align words with rows of scores; times in seconds from the first. Raises ItemError."""


class WordPlacer:
    """Times the words of parts by one checkpoint; thread-safe, as several engines share it."""

    def __init__(self, aligner: WordAligner) -> None:
        self._aligner = aligner
        self._known: tuple[str, TextWords] | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path, *, device: str, dtype: str) -> "WordPlacer":
        """Load a checkpoint folder; data types that its family does not support become `auto`.

        Raises:
            CheckpointError: the checkpoint is no aligner.
        """
        where = resolve_device(device)
        family = family_of(folder)
        name = dtype if dtype in COMPUTE_DTYPES else "auto"
        compute_dtype = resolve_dtype(name, where, wide=family.wide)
        kind = resolve(family.word_aligner)
        return cls(kind.from_folder(folder, device=where, dtype=compute_dtype))

    def check(self, settings: DecodingSettings) -> None:
        """Reject word times of a translation, whose words are not spoken.

        Raises:
            ConfigError: names the key.
        """
        translates = settings.task != "transcribe" or settings.target_language is not None
        if translates and (settings.word_timestamps or settings.align):
            key = "target_language" if settings.task == "transcribe" else "task"
            raise ConfigError(
                f"align.model: found decoding.{key} {getattr(settings, key)}, expected none, "
                "since a translation has no word times; remove one of them"
            )

    def given(
        self, part: PartRequest, settings: DecodingSettings
    ) -> tuple[PartRequest, DecodingSettings]:
        """Return the part and settings for the recognition model, which need not time words.

        Segments are final only after alignment, so the model does not report them to the listener.
        """
        known_text = part.known_text
        if part.detect_only or not _wanted(part, settings):
            return part, self.settings_given(settings)
        part = replace(part.silent(), known_text=None)
        if known_text is not None:
            settings = known_text.clipped(settings)
        return part, self.settings_given(settings)

    @staticmethod
    def settings_given(settings: DecodingSettings) -> DecodingSettings:
        """Return the model's settings; hallucination detection uses the model's own word times."""
        own_words = (
            settings.word_timestamps and settings.hallucination_silence_threshold is not None
        )
        return replace(settings, align=False, word_timestamps=own_words)

    def place(
        self, part: PartRequest, recognized: PartTranscript, settings: DecodingSettings
    ) -> PartTranscript:
        """Return the part with aligned words, recognized or of its known text.

        Raises:
            AlignmentError: no word of the text can be spelled, or the part does not contain it.
            ItemError: the network returned non-finite scores.
        """
        if recognized.elsewhere or not _wanted(part, settings):
            return recognized
        with self._lock:
            features = part.features_of(self._aligner.feature_kind)
            return self._of_part(part, features, recognized, settings)

    def _of_part(
        self,
        part: PartRequest,
        features: Float16[np.ndarray, "frame mel"],
        recognized: PartTranscript,
        settings: DecodingSettings,
    ) -> PartTranscript:
        known_text = part.known_text
        clips = (settings if known_text is None else known_text.clipped(settings)).clip_timestamps
        timed = tuple(self._timed(part, features, recognized.segments, clips))
        if known_text is None:
            return replace(recognized, segments=timed)
        words = [word for segment in timed for word in segment.words or ()]
        places = TextPlaces(part, known_text, self._words_of(known_text))
        positions = places.find(words)
        placed = self._of_text(part, features, positions, places.bounds())
        language = Language(code=recognized.language, probability=recognized.language_probability)
        return places.transcript(recognized, positions, placed, language, settings.task)

    def _words_of(self, known: KnownText) -> TextWords:
        # Parts of one recording arrive consecutively.
        if self._known is None or self._known[0] != known.text:
            words = TextWords.without_tokens(known)
            if not self._aligner.knows(words.words):
                raise AlignmentError(
                    f"aligning the text of {known.name}: found no letter of the align.model "
                    "checkpoint, expected a text in its language; change or remove align.model",
                    kind="no_text",
                )
            self._known = known.text, words
        return self._known[1]

    def _timed(
        self,
        part: PartRequest,
        features: Float16[np.ndarray, "frame mel"],
        segments: Sequence[Segment],
        clips: Sequence[float],
    ) -> Iterator[Segment]:
        """Yield segments with timed words, each kept within its clip of the recording.

        Segments that the checkpoint cannot spell keep their times.
        """
        pieces = [
            _TextSpan(
                index=index,
                start_s=segment.start_s,
                end_s=segment.end_s,
                words=tuple(words_of(segment.text)),
            )
            for index, segment in enumerate(segments)
        ]
        spelled_pieces = [piece for piece in pieces if self._aligner.knows(piece.words)]
        placed: dict[int | None, list[Word]] = {}
        for first, last in clip_ranges(part, clips):
            bounds = part.seconds(first), part.seconds(last)
            clip_pieces = [
                piece
                for piece in spelled_pieces
                if bounds[0] <= (piece.start_s + piece.end_s) / 2 <= bounds[1]
            ]
            for piece, words in self._placed(part, features, clip_pieces, bounds):
                placed[piece.index] = words
        for segment, piece in zip(segments, pieces, strict=True):
            words = placed.get(piece.index) or _spread(piece)
            start_s, end_s = words[0].start_s, words[-1].end_s
            end_s = max(end_s, start_s + 1 / FRAMES_PER_SECOND)
            yield with_confidence(
                replace(
                    segment,
                    start_s=start_s,
                    end_s=end_s,
                    speech_fraction=part.speech_fraction(start_s, end_s),
                    words=tuple(words),
                )
            )

    def _of_text(
        self,
        part: PartRequest,
        features: Float16[np.ndarray, "frame mel"],
        positions: Sequence[TextPosition],
        bounds: tuple[float, float],
    ) -> list[PlacedWord]:
        """Return the words of a known text that the part contains."""
        near_text = [
            place
            for stretch in stretches(positions)
            for place in stretch
            if place.index is not None or self._aligner.knows((place.word,))
        ]
        possible = {place.index for place in near_text if place.index is not None}
        while True:
            spans = [
                _TextSpan(
                    index=place.index,
                    start_s=place.start_s,
                    end_s=place.end_s,
                    words=(place.word,),
                    certain=place.anchor or place.index is None,
                )
                for place in words_to_read(near_text, possible, possible)
            ]
            words = [
                PlacedWord(
                    index=span.index,
                    word=word,
                    logprobs=(math.log(max(word.probability, _FLOOR)),),
                )
                for span, (word,) in self._placed(part, features, spans, bounds)
                if span.index is not None
            ]
            spoken = {word.index for word in words}
            # Recognized words are read where no word of the text was what is spoken.
            if words_to_read(near_text, (), spoken) == words_to_read(near_text, (), possible):
                return words
            possible = spoken

    def _placed(
        self,
        part: PartRequest,
        features: Float16[np.ndarray, "frame mel"],
        pieces: Sequence[_TextSpan],
        bounds: tuple[float, float],
    ) -> Iterator[_Placed]:
        """Yield the spans kept between `bounds` (seconds) with their timed words, in order."""
        begin_s, stop_s = bounds
        for span, (start_s, end_s) in _runs(pieces, _LONG_PAUSE_S, begin_s, stop_s):
            first = part.frame(start_s)
            scores = self._aligner.scores(features[first : part.frame(end_s)])
            candidates = span
            for _ in range(_ROUNDS):
                placed_pieces = [
                    placed
                    for run, edges in _runs(candidates, _PAUSE_S, start_s, end_s)
                    for placed in self._in_run(part.seconds(first), scores, run, edges)
                ]
                kept = [(piece, words) for piece, words in placed_pieces if _is_said(piece, words)]
                if len(kept) == len(placed_pieces):
                    break
                candidates = [piece for piece, _ in kept]
            yield from kept

    def _in_run(
        self,
        first_s: float,
        scores: Any,
        run: Sequence[_TextSpan],
        edges: tuple[float, float],
    ) -> Iterator[_Placed]:
        """Align the words of a run between its edges; distribute them evenly if they do not fit."""
        step_s = self._aligner.position_s
        low, high = (round((edge_s - first_s) / step_s) for edge_s in edges)
        words = [word for piece in run for word in piece.words]
        try:
            timed_words = iter(self._aligner.place(scores[low:high], words))
        except AlignmentError:
            yield from ((piece, _spread(piece)) for piece in run)
            return
        begin_s = first_s + low * step_s
        for piece in run:
            yield (
                piece,
                [
                    Word(
                        word=timed_word.word,
                        start_s=min(begin_s + timed_word.start_s, edges[1]),
                        end_s=min(begin_s + timed_word.end_s, edges[1]),
                        probability=timed_word.probability,
                    )
                    for timed_word in islice(timed_words, len(piece.words))
                ],
            )


def _wanted(part: PartRequest, settings: DecodingSettings) -> bool:
    return settings.word_timestamps or part.known_text is not None


def _runs(
    pieces: Sequence[_TextSpan], pause_s: float, begin_s: float, stop_s: float
) -> Iterator[tuple[list[_TextSpan], tuple[float, float]]]:
    """Yield runs separated by pauses of at least `pause_s`, with the edges of their audio."""
    ends_s = np.maximum.accumulate([piece.end_s for piece in pieces]).tolist() if pieces else []
    firsts = [
        at for at, piece in enumerate(pieces)
        if not at or piece.start_s - ends_s[at - 1] >= pause_s
    ]  # fmt: skip
    for first, stop in pairwise([*firsts, len(pieces)]):
        start_s, end_s = pieces[first].start_s, ends_s[stop - 1]
        before_s = ends_s[first - 1] if first else -math.inf
        after_s = pieces[stop].start_s if stop < len(pieces) else math.inf
        low_s = max(begin_s, start_s - min(_MARGIN_S, (start_s - before_s) / 2))
        high_s = min(stop_s, end_s + min(_MARGIN_S, (after_s - end_s) / 2))
        yield list(pieces[first:stop]), (low_s, max(low_s, high_s))


def _is_said(piece: _TextSpan, words: Sequence[Word]) -> bool:
    return piece.certain or all(word.probability >= _LEAST_PROBABILITY for word in words)


def _spread(piece: _TextSpan) -> list[Word]:
    """Distribute words over their span in proportion to their length in characters."""
    lengths = [len(word.strip()) for word in piece.words]
    spans = spread_evenly(lengths, piece.start_s, piece.end_s)
    return [
        Word(word=word, start_s=start_s, end_s=end_s, probability=0.0)
        for word, (start_s, end_s) in zip(piece.words, spans, strict=True)
    ]
