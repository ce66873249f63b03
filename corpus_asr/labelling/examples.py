"""Examples of a dataset, made of the kept segments of a recording in shards.

No example reaches into a segment that is not in it.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section
2.3: 30 s of audio with the transcript in them between timestamps in steps of 20 ms, sometimes after
the text before.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any

from corpus_asr.config.run import WINDOWS, DatasetSettings
from corpus_asr.labelling.splits import SPLITS
from corpus_asr.report.scoring import WITHOUT_BLANKS
from corpus_asr.stages.messages import ClipRange, CutRequest
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ, TIMESTAMP_STEP_S, WINDOW_S

Rows = Sequence[dict[str, Any]]

_SAMPLE_BYTES = 2  # shards are bounded by audio as it is before encoding
# An example is as good as its worst segment.
_LEAST = ("confidence", "avg_logprob")
_GREATEST = (
    "no_speech_prob", "compression_ratio", "temperature", "disagreement", "from_other", "wer",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A part of a recording and its text."""

    clip: ClipRange
    row: dict[str, Any]
    """Row of the EXAMPLES table, without audio and duration."""


def examples_of(rows: Rows, settings: DatasetSettings) -> list[Example]:
    """Return the examples of a recording, and set `example_id` in its rows."""
    examples: list[Example] = []
    first = 0
    for _, group in groupby(rows, key=lambda row: row["channel"]):
        of_channel = list(group)
        examples += _of_channel(of_channel, first, settings)
        first += len(of_channel)
    # The reference is for the whole recording: kept only for a single example of all segments.
    if len(examples) == 1 and all(row["example_id"] for row in rows):
        examples[0].row["reference"] = rows[0]["reference"]
    return examples


def _of_channel(rows: Rows, first: int, settings: DatasetSettings) -> Iterator[Example]:
    last_text: str | None = None
    ends_s = list(accumulate((row["end_s"] for row in rows), max))
    for start, stop in _windows(rows, settings):
        # Segments may overlap: the previous one does not necessarily end last.
        spoken_s = ends_s[start - 1] if start else 0.0
        pause_s = rows[start]["start_s"] - spoken_s
        if start == 0 or pause_s > WINDOW_S or not _goes_on(rows[start - 1], rows[start]):
            last_text = None
        example = _example(rows, start, stop, first + start, spoken_s, settings)
        example.row["condition_on_prev"] = last_text
        last_text = example.row["text"]
        yield example


def _goes_on(last: dict[str, Any], row: dict[str, Any]) -> bool:
    # A dropped text is not used as prompt, since decoding would continue its errors.
    same = (row["language"], row["task"]) == (last["language"], last["task"])
    return same and last["dropped_by"] is None


def _windows(rows: Rows, settings: DatasetSettings) -> Iterator[tuple[int, int]]:
    start: int | None = None
    for at, row in enumerate(rows):
        fits = start is not None and _fits(rows[start:at], row, settings)
        if start is not None and not fits:
            yield start, at
            start = None
        if row["dropped_by"] is None and start is None:
            start = at
    if start is not None:
        yield start, len(rows)


def _fits(window: Rows, row: dict[str, Any], settings: DatasetSettings) -> bool:
    last = window[-1]
    return bool(
        settings.examples == WINDOWS
        and row["dropped_by"] is None
        and _goes_on(last, row)
        and row["end_s"] - window[0]["start_s"] <= WINDOW_S
        and row["start_s"] - last["end_s"] <= settings.max_pause_s
    )


def _example(
    rows: Rows, start: int, stop: int, number: int, spoken_s: float, settings: DatasetSettings
) -> Example:
    """Make an example of some rows; what is before them has ended at `spoken_s`."""
    window = rows[start:stop]
    after_s = rows[stop]["start_s"] if stop < len(rows) else window[0]["recording_s"]
    start_s, end_s = _bounds(window, spoken_s, after_s, settings)
    identity, channel = window[0]["recording_id"], window[0]["channel"]
    apart = "" if channel is None else f"-{channel}"
    # By the number of its first segment, which no selection changes.
    name = f"{identity}{apart}-{number:05d}"
    for row in window:
        row["example_id"] = name
    language = window[0]["language"]
    texts = [row["text"] for row in window]
    text = joined(texts, language)
    speakers = {row["speaker"] for row in window}
    values = {
        "example_id": name,
        "text": text,
        "whisper_transcript": _timestamped(window, texts, start_s),
        "language": language,
        "task": window[0]["task"],
        "recording_id": identity,
        "uri": window[0]["uri"],
        "channel": channel,
        "audio_track": window[0]["audio_track"],
        "start_s": start_s,
        "end_s": end_s,
        "reference": None,
        "speaker": speakers.pop() if len(speakers) == 1 else None,
        "corrected": all(row["corrected"] for row in window),
        "model": window[0]["model"],
        "model_revision": window[0]["model_revision"],
    }
    values |= {name: _extreme(min, window, name) for name in _LEAST}
    values |= {name: _extreme(max, window, name) for name in _GREATEST}
    clip = ClipRange(
        channel=channel,
        track=window[0]["audio_track"],
        start_sample=round(start_s * SAMPLE_RATE_HZ),
        end_sample=round(end_s * SAMPLE_RATE_HZ),
    )
    return Example(clip=clip, row=values)


def _bounds(
    window: Rows, spoken_s: float, after_s: float, settings: DatasetSettings
) -> tuple[float, float]:
    start_s, end_s = window[0]["start_s"], max(row["end_s"] for row in window)
    # Neighbors may overlap by rounding: padding is never negative.
    room_s = max(0.0, WINDOW_S - (end_s - start_s))
    lead_s = max(0.0, min(settings.pad_s, start_s - spoken_s, room_s))
    tail_s = max(0.0, min(settings.pad_s, after_s - end_s, room_s - lead_s))
    return start_s - lead_s, end_s + tail_s


def _timestamped(window: Rows, texts: Sequence[str], start_s: float) -> str:
    times = []
    latest = 0
    for row in window:
        for name in ("start_s", "end_s"):
            step = round((row[name] - start_s) / TIMESTAMP_STEP_S)
            # Rounding and overlaps must not make times decrease, which training rejects.
            latest = max(latest, min(step, round(WINDOW_S / TIMESTAMP_STEP_S)))
            times.append(f"<|{latest * TIMESTAMP_STEP_S:.2f}|>")
    return "".join(
        f"{start}{text}{end}"
        for start, end, text in zip(times[::2], times[1::2], texts, strict=True)
    )


def joined(texts: Sequence[str], language: str | None) -> str:
    """Join the texts of segments; not all model families start segments with a space."""
    parts = list(texts[:1])
    for last_text, text in pairwise(texts):
        apart = last_text[-1:].isspace() or text[:1].isspace() or language in WITHOUT_BLANKS
        parts.append(text if apart else f" {text}")
    return "".join(parts).strip()


def _extreme(choose: Any, window: Rows, name: str) -> float | None:
    numbers = [row[name] for row in window if row[name] is not None]
    return choose(numbers) if numbers else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """A recording, and the examples that are cut out of it."""

    request: CutRequest
    rows: tuple[dict[str, Any], ...]
    """Rows of the EXAMPLES table, one for each range of the request."""


@dataclass(slots=True, kw_only=True)
class Shard:
    """The content of one file."""

    split: str
    number: int = 0
    cuts: list[Cuts] = field(default_factory=list)
    num_bytes: int = 0

    @property
    def name(self) -> str:
        """Return the stem of its files."""
        return f"{self.split}-{self.number:05d}"

    def digest(self) -> str:
        """Return a hash of its content."""
        content = json.dumps([[repr(cuts.request), cuts.rows] for cuts in self.cuts])
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def shards_of(
    recordings: Iterable[tuple[dict[str, Any], list[Example]]], settings: DatasetSettings
) -> Iterator[Shard]:
    """Yield full shards; memory holds the text of one per split."""
    opened = {split: Shard(split=split) for split in SPLITS}
    limit = settings.shard_mb * MEBIBYTE
    for row, examples in recordings:
        split = row["split"]
        while examples:
            shard = opened[split]
            taken = _that_fit(examples, limit - shard.num_bytes, at_least=not shard.cuts)
            if taken:
                request = CutRequest(
                    uri=row["uri"],
                    size_bytes=row["size_bytes"],
                    etag=row["etag"],
                    ranges=tuple(example.clip for example in examples[:taken]),
                )
                rows = tuple(example.row for example in examples[:taken])
                shard.cuts.append(Cuts(request=request, rows=rows))
                shard.num_bytes += sum(map(_num_bytes, examples[:taken]))
                examples = examples[taken:]
            if examples:
                yield shard
                opened[split] = Shard(split=split, number=shard.number + 1)
    yield from (shard for shard in opened.values() if shard.cuts)


def _that_fit(examples: list[Example], room: float, *, at_least: bool) -> int:
    # An empty shard takes any example, however large.
    for taken, example in enumerate(examples):
        room -= _num_bytes(example)
        if room < 0:
            return max(taken, int(at_least))
    return len(examples)


def _num_bytes(example: Example) -> int:
    return _SAMPLE_BYTES * (example.clip.end_sample - example.clip.start_sample)
