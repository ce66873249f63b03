"""Whisper's seek loop: window after window, each starting where the last one's text ended.

In: a part and the stretch of it to transcribe. Out: segments in recording time. Written as a
generator that yields windows to decode, so that many loops advance side by side in one batch.
"""

from collections.abc import Callable, Generator, Sequence
from hashlib import blake2b

import numpy as np
from jaxtyping import Float16

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import Search, WindowJob, WindowResult
from corpus_asr.segments import Segment
from corpus_asr.transcription.dialect import Dialect
from corpus_asr.transcription.fallback import DecodedWindow, decode_window, is_silence
from corpus_asr.transcription.language import Language
from corpus_asr.transcription.scores import confidence
from corpus_asr.transcription.timestamps import Piece, split_at_timestamps
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import WINDOW_FRAMES

# Above this temperature the text is too uncertain to prompt the next window with.
_PROMPT_MAX_TEMPERATURE = 0.5

Cut = Callable[[int, int], Float16[np.ndarray, "mel frame"]]


def transcribe_range(
    part: PartRequest,
    start: int,
    end: int,
    *,
    language: Language,
    dialect: Dialect,
    settings: DecodingSettings,
    cut: Cut | None = None,
) -> Generator[WindowJob, WindowResult, list[Segment]]:
    """Transcribe the frames from `start` to `end` of a part.

    Args:
        cut: makes the window from one frame with content up to another; None for the part's own
            rule.

    Source: openai-whisper `transcribe`, with three differences: long silence is jumped over; a
    window may say as many tokens as the decoder holds (as in `transformers`), not half of them;
    and in a recording that fits one window the audio is followed by digital silence (as
    `transformers` has it for short clips, and as the models were trained), not by 0.0.
    """
    cut = cut or part.window
    segments: list[Segment] = []
    previous: list[int] = []
    seek = part.next_speech(start, end)
    while seek is not None:
        at = seek
        content_frames = min(WINDOW_FRAMES, end - at)
        prompt, start_position = dialect.prompt(language.code, settings.task, previous)
        features = cut(at, end)

        def job_at(temperature: float) -> WindowJob:
            return WindowJob(
                features=features,  # noqa: B023  (consumed before the loop goes on)
                window=(at, end),  # noqa: B023
                prompt=prompt,  # noqa: B023
                rules=dialect.text_rules,
                max_new_tokens=dialect.max_target_positions,
                search=Search(temperature=temperature),
                seed=_seed(part, at, temperature),  # noqa: B023
                score_token=dialect.no_speech,
                score_position=start_position,  # noqa: B023
            )

        decoded = yield from decode_window(job_at, settings, dialect.text)
        if is_silence(decoded, settings):
            seek = part.next_speech(at + content_frames, end)
            continue
        pieces, advance = split_at_timestamps(
            decoded.tokens, timestamp_begin=dialect.timestamp_begin, content_frames=content_frames
        )
        for piece in pieces:
            segment = _segment(part, at, end, piece, decoded, language, dialect, settings.task)
            if segment is not None:
                segments.append(segment)
                previous.extend(decoded.tokens[piece.first : piece.stop])
        if not settings.condition_on_prev_tokens or decoded.temperature > _PROMPT_MAX_TEMPERATURE:
            previous.clear()
        # A window whose last timestamp is its start would be decoded for ever.
        seek = part.next_speech(at + (advance or content_frames), end)
    return segments


def _segment(
    part: PartRequest,
    window_start: int,
    end: int,
    piece: Piece,
    decoded: DecodedWindow,
    language: Language,
    dialect: Dialect,
    task: str,
) -> Segment | None:
    """Make a segment of a piece; None if it says nothing or takes no time.

    What lies in the padding after the end of the stretch was never said; an end time that passes
    it is cut.
    """
    positions = [at for at in range(piece.first, piece.stop) if decoded.tokens[at] < dialect.end]
    tokens = [decoded.tokens[at] for at in positions]
    text = dialect.text(tokens)
    if not text.strip():
        return None
    start_s = part.seconds(window_start) + piece.start_s
    end_s = min(part.seconds(window_start) + piece.end_s, part.seconds(end))
    if start_s >= end_s:
        return None
    return Segment(
        start_s=start_s,
        end_s=end_s,
        text=text,
        tokens=tuple(tokens),
        language=language.code,
        language_probability=language.probability,
        task=task,
        confidence=confidence([decoded.logprobs[at] for at in positions]),
        avg_logprob=decoded.avg_logprob,
        no_speech_prob=decoded.no_speech_prob,
        compression_ratio=decoded.compression_ratio,
        temperature=decoded.temperature,
        speech_fraction=part.speech_fraction(start_s, end_s),
    )


def _seed(part: PartRequest, frame: int, temperature: float) -> int:
    """A seed that names recording, window and temperature, and nothing about this run."""
    name: Sequence[object] = (part.recording_id, round(part.seconds(frame), 2), temperature)
    return int.from_bytes(blake2b(repr(name).encode(), digest_size=7).digest(), "big")
