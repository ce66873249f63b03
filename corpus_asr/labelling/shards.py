"""Examples spread over files: which go where, the same each time.

In: the examples of one recording after the other. Out: shards, each a list of recordings with what
is cut out of them, bounded in audio. A recording's split is drawn by its identity, so it is in one
alone, whatever else is selected. Knows nothing of how files look.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from corpus_asr.config.labelling import DatasetSettings
from corpus_asr.labelling.cutting import CutRequest, Stretch
from corpus_asr.labelling.examples import Example
from corpus_asr.units import MEBIBYTE

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
_SAMPLE_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """A recording, and the examples that are cut out of it."""

    request: CutRequest
    rows: tuple[dict[str, Any], ...]
    """Of the EXAMPLES table, one for each stretch of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What goes into one file."""

    split: str
    number: int
    cuts: tuple[Cuts, ...]

    @property
    def name(self) -> str:
        """Return the stem of its files."""
        return f"{self.split}-{self.number:05d}"

    def digest(self) -> str:
        """Name what is in it."""
        told = json.dumps([[repr(each.request), each.rows] for each in self.cuts])
        return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(slots=True)
class _Open:
    number: int = 0
    num_bytes: int = 0
    cuts: list[Cuts] = field(default_factory=list)


def split_of(recording_id: str, settings: DatasetSettings) -> str:
    """Draw the split of a recording: uniform, and the same whenever it is asked for."""
    drawn = int(hashlib.blake2b(recording_id.encode(), digest_size=4).hexdigest(), 16) / (1 << 32)
    if drawn < settings.test_fraction:
        return TEST
    return VALIDATION if drawn < settings.test_fraction + settings.validation_fraction else TRAIN


def shards_of(
    recordings: Iterable[tuple[dict[str, Any], list[Example]]], settings: DatasetSettings
) -> Iterator[Shard]:
    """Yield shards as they are full; what is in memory is the text of one per split.

    Args:
        recordings: any row of each, and its examples.
        settings: of the data set.
    """
    opened = {split: _Open() for split in SPLITS}
    limit = settings.shard_mb * MEBIBYTE
    for row, examples in recordings:
        split = split_of(row["recording_id"], settings)
        while examples:
            shard = opened[split]
            taken = _that_fit(examples, limit - shard.num_bytes, at_least=not shard.cuts)
            if taken:
                shard.cuts.append(_cuts(row, examples[:taken]))
                shard.num_bytes += sum(map(_num_bytes, examples[:taken]))
                examples = examples[taken:]
            if examples:
                yield _closed(split, shard)
                opened[split] = _Open(number=shard.number + 1)
    for split, shard in opened.items():
        if shard.cuts:
            yield _closed(split, shard)


def _that_fit(examples: list[Example], room: float, *, at_least: bool) -> int:
    """Return how many of the examples there is room for; one, if the shard is empty."""
    for taken, example in enumerate(examples):
        room -= _num_bytes(example)
        if room < 0:
            return max(taken, int(at_least))
    return len(examples)


def _num_bytes(example: Example) -> int:
    return _SAMPLE_BYTES * (example.end_sample - example.start_sample)


def _closed(split: str, shard: _Open) -> Shard:
    return Shard(split=split, number=shard.number, cuts=tuple(shard.cuts))


def _cuts(row: dict[str, Any], examples: list[Example]) -> Cuts:
    stretches = tuple(
        Stretch(
            channel=example.row["channel"],
            start_sample=example.start_sample,
            end_sample=example.end_sample,
        )
        for example in examples
    )
    request = CutRequest(
        uri=row["uri"], size_bytes=row["size_bytes"], etag=row["etag"], stretches=stretches
    )
    return Cuts(request=request, rows=tuple(example.row for example in examples))
