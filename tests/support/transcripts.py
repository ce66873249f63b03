"""Recordings with segments, made by hand."""

import re

from corpus_asr.export.recordings import Recording
from corpus_asr.segments import Segment, Word


def segment(
    text: str, start_s: float, end_s: float, *, words: bool = False, language: str | None = "en"
) -> Segment:
    """Return a segment; its words, if wanted, last equally long."""
    found = re.findall(r"\s*\S+", text)
    each_s = (end_s - start_s) / max(1, len(found))
    timed = tuple(
        Word(
            word=word,
            start_s=start_s + at * each_s,
            end_s=start_s + (at + 1) * each_s,
            probability=0.5,
        )
        for at, word in enumerate(found)
    )
    return Segment(
        start_s=start_s,
        end_s=end_s,
        text=text,
        tokens=(1, 2),
        language=language,
        language_probability=None,
        task="transcribe",
        confidence=0.9,
        avg_logprob=-0.25,
        no_speech_prob=0.01,
        compression_ratio=1.5,
        temperature=0.0,
        speech_fraction=None,
        words=timed if words else None,
    )


def recording(*segments: Segment, uri: str = "/clips/talk.mp3") -> Recording:
    """Return a recording of one mixed channel."""
    return Recording(
        recording_id="r",
        uri=uri,
        duration_s=max((each.end_s for each in segments), default=0.0),
        language="en",
        segments=segments,
        channels=(None,) * len(segments),
    )
