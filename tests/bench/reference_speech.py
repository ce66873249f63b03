"""Which words of a transcript were really said, and what the manifests of real speech hold."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.families.whisper.features import WhisperPartFeatures
from corpus_asr.transcription.windows import PartRequest


def manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the items of a folder that have a reference text; `file` is the recording's path."""
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        item = json.loads(line)
        if item.get("text"):
            yield item | {"file": folder / item["path"]}


def whole(extract: WhisperPartFeatures, samples: np.ndarray, *, name: str) -> PartRequest:
    """Return a recording as one part, without speech detection."""
    features = extract(samples)
    return PartRequest(
        recording_id=name,
        part=0,
        features=features.values,
        num_samples=len(samples),
        pad_value=features.pad_value,
        start_s=0.0,
        speech=None,
    )


def matches(found: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]]:
    """Pair equal words along a cheapest alignment (Levenshtein); returns pairs of indices."""
    costs = np.zeros((len(found) + 1, len(wanted) + 1), dtype=np.int32)
    costs[:, 0] = np.arange(len(found) + 1)
    costs[0] = np.arange(len(wanted) + 1)
    columns = np.arange(len(wanted) + 1)
    words = np.array(wanted, dtype=object)
    for row, word in enumerate(found, start=1):
        above = costs[row - 1]
        best = np.minimum(above[1:] + 1, above[:-1] + (words != word))
        # Words left out cost one each, counted from the best place to its left.
        costs[row] = np.minimum.accumulate(np.append(row, best) - columns) + columns
    pairs = []
    row, column = len(found), len(wanted)
    while row and column:
        same = found[row - 1] == wanted[column - 1]
        if costs[row, column] == costs[row - 1, column - 1] + (not same):
            row, column = row - 1, column - 1
            if same:
                pairs.append((row, column))
        elif costs[row, column] == costs[row - 1, column] + 1:
            row -= 1
        else:
            column -= 1
    return pairs[::-1]
