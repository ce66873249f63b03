"""Assigns each recording of a dataset to a split: train, validation or test.

Each recording is in one split. When splitting by recording, a hash of its ID decides, whatever else
is selected. When splitting by speaker, recordings with a common speaker form a group, assigned as a
whole, so that no speaker is in both training and test. Speakers are identified by names and voices
across recordings (`speakers: corpus`); without these, speakers of different recordings are
different. In both cases, recordings that are mostly copies follow their original.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from corpus_asr.config.run import DatasetSettings
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import Turns
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
_SHOWN = 3  # speakers in a message


def split_of(recording_id: str, settings: DatasetSettings) -> str:
    """Return the split of a recording: pseudo-random and reproducible."""
    # Depends on the recording only: a changed selection never moves it between splits.
    drawn = _drawn(recording_id) / (1 << 32)
    if drawn < settings.test_fraction:
        return TEST
    return VALIDATION if drawn < settings.test_fraction + settings.validation_fraction else TRAIN


def splits_of(
    recordings: pa.Table,
    turns: Turns | None,
    settings: DatasetSettings,
    uri: str,
    *,
    originals: Mapping[str, str],
) -> Mapping[str, str]:
    """Return the split of each recording.

    Args:
        recordings: recording_id and duration_s of all recordings of the dataset.
        turns: speaker turns, with names unique to a person.
        uri: URI of the run, for messages.
        originals: of recordings that are mostly copies, by ID.

    Raises:
        ConfigError: splits by speaker are requested but impossible.
    """
    ids = recordings["recording_id"].to_pylist()
    if settings.split_by == "recording":
        return {
            recording_id: split_of(originals.get(recording_id, recording_id), settings)
            for recording_id in ids
        }
    if turns is None:
        raise ConfigError(
            f"splitting {redact_uri(uri)} by speaker: found a run without speakers, expected "
            "speaker turns; transcribe with speakers: corpus, or set dataset.split_by: recording"
        )
    seconds = dict(zip(ids, recordings["duration_s"].to_pylist(), strict=True))
    splits = _dealt(_groups(ids, turns, originals), seconds, turns, settings, uri)
    quiet = {
        recording_id: originals.get(recording_id)
        for recording_id in ids
        if not turns.get(recording_id)
    }
    return splits | {recording_id: splits[at] for recording_id, at in quiet.items() if at in splits}


def _drawn(name: str) -> int:
    return int(hashlib.blake2b(name.encode(), digest_size=4).hexdigest(), 16)


def _groups(ids: list[str], turns: Turns, originals: Mapping[str, str]) -> list[list[str]]:
    """Return groups of recordings that share speakers or copies, each sorted.

    Groups with a recording without known speakers are omitted; recordings that are copies neither
    join groups nor appear in them.
    """
    first = {originals.get(recording_id) for recording_id in ids if turns.get(recording_id)}
    ids = [recording_id for recording_id in ids if turns.get(recording_id) or recording_id in first]
    above = dict(zip(ids, ids, strict=True))

    def root(node: str) -> str:
        while above[node] != node:
            above[node] = above[above[node]]
            node = above[node]
        return node

    first_of: dict[tuple[str, str], str] = {}
    for recording_id in sorted(ids):
        shared = {("speaker", turn.speaker) for turn in turns.get(recording_id, ())}
        for trait in shared | {("original", originals.get(recording_id, recording_id))}:
            first_root, second_root = (
                root(recording_id),
                root(first_of.setdefault(trait, recording_id)),
            )
            above[max(first_root, second_root)] = min(first_root, second_root)
    groups: dict[str, list[str]] = {}
    for recording_id in sorted(ids):
        groups.setdefault(root(recording_id), []).append(recording_id)
    return [
        group for group in groups.values() if all(turns.get(recording_id) for recording_id in group)
    ]


def _dealt(
    groups: list[list[str]],
    seconds: Mapping[str, float],
    turns: Turns,
    settings: DatasetSettings,
    uri: str,
) -> dict[str, str]:
    """Assign groups in an order given by hashes of their names, while one fits a split's fraction.

    A split that would stay empty gets the shortest group.
    """
    shares = {TEST: settings.test_fraction, VALIDATION: settings.validation_fraction}
    wanted = [split for split, share in shares.items() if share > 0]
    if wanted and len(groups) <= len(wanted):
        raise ConfigError(_too_few(groups, turns, [*wanted, TRAIN], uri))
    lengths = [sum(seconds[recording_id] for recording_id in group) for group in groups]
    total_s = sum(lengths)
    room = {split: shares[split] * total_s for split in wanted}
    dealt = [TRAIN] * len(groups)
    for at in sorted(range(len(groups)), key=lambda at: (_drawn(groups[at][0]), groups[at][0])):
        for split in wanted:
            if lengths[at] <= room[split] and dealt[at] == TRAIN:
                dealt[at], room[split] = split, room[split] - lengths[at]
    for split in (*wanted, TRAIN) if groups else ():
        counts = Counter(dealt)
        if not counts[split]:
            # From a split with several groups: there are more groups than splits.
            able = [at for at, dealt_split in enumerate(dealt) if counts[dealt_split] > 1]
            choose = max if split == TRAIN else min
            dealt[choose(able, key=lambda at: (lengths[at], groups[at][0]))] = split
    splits = {
        recording_id: split
        for group, split in zip(groups, dealt, strict=True)
        for recording_id in group
    }
    # A recording without known speakers is in the training split.
    return dict.fromkeys(seconds, TRAIN) | splits


def _too_few(groups: list[list[str]], turns: Turns, splits: list[str], uri: str) -> str:
    doing = f"splitting {redact_uri(uri)} by speaker"
    advice = "set fractions to 0, add speakers, or set dataset.split_by: recording"
    needs = f"expected {len(splits)} for {', '.join(splits)}"
    spoken = Counter(
        speaker
        for group in groups
        for recording_id in group
        for speaker in {turn.speaker for turn in turns.get(recording_id, ())}
    )
    if len(spoken) <= 1:
        return f"{doing}: found {'one speaker' if spoken else 'none'}, {needs}; {advice}"
    most = sorted(spoken, key=lambda name: (-spoken[name], name))[:_SHOWN]
    shared = ", ".join(f"{name:.60} in {spoken[name]:,}" for name in most)
    shown_groups = f"{counted(len(groups), 'group')} of recordings"
    return f"{doing}: found {shown_groups} that share no speaker ({shared}), {needs}; {advice}"
