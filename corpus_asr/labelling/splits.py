"""Which split each recording of a data set is in: train, validation or test.

A recording is in one split alone. By recording its identity draws it, whatever else is selected.
By speaker, recordings that share one are a group, and groups are dealt out whole: nobody who is
learned is tested. What is known of a run's speakers decides, so names and voices across recordings
(`speakers: corpus`) make groups; without them every recording has speakers of its own. Either way,
recordings that are mostly a copy are where their original is.
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
_SHOWN = 3  # speakers, in a message


def split_of(recording_id: str, settings: DatasetSettings) -> str:
    """Draw the split of a recording: uniform, and the same whenever it is asked for."""
    # Of the recording alone: what else is selected moves none from training to a test set.
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
        recordings: recording_id and duration_s of those that the data set is made of.
        turns: who speaks when, by names that are one person's alone.
        uri: the run, for messages.
        originals: of recordings that are mostly a copy.

    Raises:
        ConfigError: splits by speaker are asked for, and cannot be made.
    """
    ids = recordings["recording_id"].to_pylist()
    if settings.split_by == "recording":
        return {each: split_of(originals.get(each, each), settings) for each in ids}
    if turns is None:
        raise ConfigError(
            f"splitting {redact_uri(uri)} by speaker: found a run that looked for no speakers, "
            "expected their turns; transcribe with speakers: corpus, or set dataset.split_by: "
            "recording"
        )
    seconds = dict(zip(ids, recordings["duration_s"].to_pylist(), strict=True))
    found = _dealt(_groups(ids, turns, originals), seconds, turns, settings, uri)
    quiet = {each: originals.get(each) for each in ids if not turns.get(each)}
    return found | {each: found[at] for each, at in quiet.items() if at in found}


def _drawn(name: str) -> int:
    return int(hashlib.blake2b(name.encode(), digest_size=4).hexdigest(), 16)


def _groups(ids: list[str], turns: Turns, originals: Mapping[str, str]) -> list[list[str]]:
    """Return the recordings in groups that share no speakers and copies, each sorted.

    A group with a recording in which nobody is known to speak is none; one that is a copy itself
    joins no others, and is in none.
    """
    first = {originals.get(each) for each in ids if turns.get(each)}
    ids = [each for each in ids if turns.get(each) or each in first]
    above = dict(zip(ids, ids, strict=True))

    def root(each: str) -> str:
        while above[each] != each:
            above[each] = above[above[each]]
            each = above[each]
        return each

    first_of: dict[tuple[str, str], str] = {}
    for each in sorted(ids):
        shared = {("speaker", turn.speaker) for turn in turns.get(each, ())}
        for what in shared | {("original", originals.get(each, each))}:
            one, other = root(each), root(first_of.setdefault(what, each))
            above[max(one, other)] = min(one, other)
    groups: dict[str, list[str]] = {}
    for each in sorted(ids):
        groups.setdefault(root(each), []).append(each)
    return [group for group in groups.values() if all(turns.get(each) for each in group)]


def _dealt(
    groups: list[list[str]],
    seconds: Mapping[str, float],
    turns: Turns,
    settings: DatasetSettings,
    uri: str,
) -> dict[str, str]:
    """Deal out groups in an order drawn by their names, as long as one fits into a split's share.

    A split that would stay empty gets the shortest group, so that it is there.
    """
    shares = {TEST: settings.test_fraction, VALIDATION: settings.validation_fraction}
    wanted = [split for split, share in shares.items() if share > 0]
    if wanted and len(groups) <= len(wanted):
        raise ConfigError(_too_few(groups, turns, [*wanted, TRAIN], uri))
    lengths = [sum(seconds[each] for each in group) for group in groups]
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
            # Of several in one split: there are more groups than splits.
            able = [at for at, other in enumerate(dealt) if counts[other] > 1]
            choose = max if split == TRAIN else min
            dealt[choose(able, key=lambda at: (lengths[at], groups[at][0]))] = split
    found = {each: split for group, split in zip(groups, dealt, strict=True) for each in group}
    # Where nobody is known anybody may speak: that is no test.
    return dict.fromkeys(seconds, TRAIN) | found


def _too_few(groups: list[list[str]], turns: Turns, splits: list[str], uri: str) -> str:
    doing = f"splitting {redact_uri(uri)} by speaker"
    advice = "set fractions to 0, add recordings of others, or set dataset.split_by: recording"
    needs = f"expected {len(splits)} for {', '.join(splits)}"
    spoken = Counter(
        speaker
        for group in groups
        for each in group
        for speaker in {turn.speaker for turn in turns.get(each, ())}
    )
    if len(spoken) <= 1:
        return f"{doing}: found {'one speaker only' if spoken else 'nobody'}, {needs}; {advice}"
    most = sorted(spoken, key=lambda name: (-spoken[name], name))[:_SHOWN]
    shared = ", ".join(f"{name:.60} in {spoken[name]:,}" for name in most)
    what = f"{counted(len(groups), 'group')} of recordings"
    return f"{doing}: found {what} that share no speaker ({shared}), {needs}; {advice}"
