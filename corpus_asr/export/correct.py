"""Corrections from exported files that people edited.

A file is compared with the present export of the same recording. Its text spans are assigned to the
segments with the most overlap in time; if texts, speakers or times of a segment differ, one
correction replaces it. Equal segments get none.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpus_asr.edits.corrected_segments import SeenSegments
from corpus_asr.edits.corrections import (
    Correction,
    Corrections,
    EditedSegment,
    correct,
    read_saved,
    save_correction,
)
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import (
    WANTED_PARTS,
    WORD_COLUMNS,
    Recording,
    Selection,
    open_selection,
)
from corpus_asr.export.speakers import speakers_of
from corpus_asr.export.write import distinct_names
from corpus_asr.formats.cues import labelled
from corpus_asr.formats.edited import READERS, EditedCue, join_lines, read_edited
from corpus_asr.formats.options import CueRules, ExportFormat, SubtitlePreset
from corpus_asr.formats.writers import file_contents
from corpus_asr.segments import SpeakerTurn, channel_name
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

# Maximum time difference in seconds of equal cues and segments.
_SAME_S = 0.05
_MOST_OVERLAP_S = 1.0
_CUES, _TIERED = (".srt", ".vtt"), ".eaf"

Row = dict[str, Any]


@dataclass(slots=True)
class CorrectSummary:
    """Counts of edited files."""

    files: int = 0
    corrections: int = 0
    recording_ids: set[str] = field(default_factory=set)
    """IDs of the corrected recordings."""


def correct_from_files(store: OutputStore, edited: Sequence[str]) -> CorrectSummary:
    """Save changes in exported files as corrections, none of them checked.

    Nothing is saved unless all files are readable.

    Raises:
        ConfigError: a file belongs to no recording, or is not an export of it.
    """
    paths = _paths_of(edited)
    summary = CorrectSummary(files=len(paths))
    path_of = _paths_by_recording(store, paths)
    ids = pa.array(sorted(path_of), pa.string())
    while True:
        saved = read_saved(store)
        made: list[Correction] = []
        with open_selection(store, Selection(partial=True), among=ids) as tables:
            turns = speakers_of(store) or {}
            counting = Corrections(saved)
            seen = SeenSegments(store, tables, counting)
            rows: dict[str, list[Row]] = {}
            for batch in seen.batches(WORD_COLUMNS, of=WANTED_PARTS):
                for row in batch.to_pylist():
                    rows.setdefault(row["recording_id"], []).append(row)
            wanted = tables.table("select *, main_language as language from wanted").to_pylist()
        recordings = {row["recording_id"]: row for row in wanted}
        for recording_id, path in path_of.items():
            if recording_id not in recordings:
                raise ConfigError(
                    f"reading {path}: found no transcript of its recording, expected one; "
                    "run the job again"
                )
            segments = sorted(
                rows.get(recording_id, []), key=lambda row: (row["start_s"], row["end_s"])
            )
            compared = _FileDiff(path, recordings[recording_id], segments, turns.get(recording_id))
            # A file applied before would revert later corrections.
            is_read = any(
                correction.file_digest == compared.digest
                for correction in counting.of(recording_id)
            )
            corrections = [] if is_read else list(compared.corrections())
            if corrections:
                corrections[-1] = replace(corrections[-1], file_digest=compared.digest)
            made += corrections
        if _save(store, saved, made, summary):
            break
    return summary


def _save(
    store: OutputStore,
    saved: dict[str, Correction],
    made: Sequence[Correction],
    summary: CorrectSummary,
) -> bool:
    """Save corrections; return False if another one was saved meanwhile and must be read first."""
    for correction in made:
        name = save_correction(store, correction, saved)
        if name is None:
            return False
        saved[name] = correction
        summary.corrections += 1
        summary.recording_ids.add(correction.recording_id)
    return True


def _paths_of(edited: Sequence[str]) -> dict[Path, Path]:
    """Return files, each with the path part that may be its recording's name."""
    paths: dict[Path, Path] = {}
    for name in edited:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in READERS)
            if not files:
                raise ConfigError(
                    f"reading {name}: found no {', '.join(READERS)}, expected files of corpus-asr "
                    "export; name another folder"
                )
            paths |= {file: file.relative_to(path) for file in files}
        elif path.suffix in READERS and path.is_file():
            paths[path] = path
        else:
            problem = "no such file" if not path.exists() else f"the format {path.suffix or 'none'}"
            raise ConfigError(
                f"reading {name}: found {problem}, expected one of {', '.join(READERS)} of "
                "corpus-asr export, or a folder of these; correct the path"
            )
    return paths


def _paths_by_recording(store: OutputStore, paths: Mapping[Path, Path]) -> dict[str, Path]:
    """Return the file of each recording, matched by name."""
    with open_selection(store, Selection(partial=True)) as tables:
        named = tables.table("select recording_id, uri from recordings order by uri, recording_id")
    ids = named["recording_id"].to_pylist()
    id_of: dict[str, str] = {}
    for suffix in {path.suffix for path in paths}:
        names = distinct_names(named, [suffix])
        id_of |= {
            name + suffix: recording_id for name, recording_id in zip(names, ids, strict=True)
        }
    path_of: dict[str, Path] = {}
    for path, inner in paths.items():
        parts = inner.parts if inner != path else path.absolute().parts
        candidates = ["/".join(parts)] if inner != path else [
            "/".join(parts[at:]) for at in range(len(parts))
        ]  # fmt: skip
        recording_id = next((id_of[name] for name in candidates if name in id_of), None)
        if recording_id is None:
            example = min(id_of, default="none: it has no recordings")
            raise ConfigError(
                f"reading {path}: found no recording of this name in {redact_uri(store.uri)}, "
                f"expected a name from export, such as {example}; rename the file"
            )
        if recording_id in path_of:
            raise ConfigError(
                f"reading {path}: found {path_of[recording_id]} of the same recording, expected "
                "one file; remove one"
            )
        path_of[recording_id] = path
    return path_of


@dataclass(slots=True)
class _Segments:
    """Segments and cues that share text spans, in the edited file and the present export."""

    rows: list[Row] = field(default_factory=list)
    before: list[EditedCue] = field(default_factory=list)
    after: list[EditedCue] = field(default_factory=list)


class _FileDiff:
    """An edited file and its recording."""

    def __init__(
        self, path: Path, row: Row, rows: Sequence[Row], turns: Sequence[SpeakerTurn] | None
    ) -> None:
        self._path, self._row, self._rows = path, row, rows
        shown = [segment for segment in rows if segment["text"]]
        recording = Recording.of(row, shown)
        if turns is not None:
            recording = recording.spoken_by(turns)
        self._recording = recording
        self._labels = {(turn.channel, turn.speaker): turn.label for turn in turns or ()}
        self._channels = [*recording.by_channel()]
        try:
            data = path.read_bytes()
            self.digest = hashlib.sha256(data).hexdigest()
            self._after = self._read(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"reading {path}: found bytes that are not UTF-8, expected UTF-8; convert the file"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"reading {path}: {error}; correct the file, or export it again"
            ) from error
        # Split into cues with the default rules or not at all.
        choices = [self._written(CueRules())]
        if path.suffix in _CUES:
            choices.append(self._written(CueRules(preset=SubtitlePreset.none)))
        spans = {(cue.start_s, cue.end_s) for cue in self._after}
        self._before = max(
            choices, key=lambda cues: sum((cue.start_s, cue.end_s) in spans for cue in cues)
        )

    def _read(self, text: str) -> list[EditedCue]:
        is_labelled = any(
            segment.speaker for segments in labelled(self._recording) for segment in segments
        )
        return read_edited(text, self._path.suffix, labelled=is_labelled)

    def _written(self, rules: CueRules) -> list[EditedCue]:
        name = ExportFormat(self._path.suffix.removeprefix("."))
        ((_, content),) = file_contents(self._recording, [name], rules=rules)
        return self._read(content.decode())

    def corrections(self) -> Iterator[Correction]:
        """Yield a correction for all segments that share changed spans."""
        for channel in self._channels or [None]:
            rows = [row for row in self._rows if row["channel"] == channel]
            old_cues, new_cues = (
                [cue for cue in cues if self._channel_of(cue) == channel]
                for cues in (self._before, self._after)
            )
            self._check_times(new_cues)
            if new_cues and not rows:
                raise ConfigError(
                    f"reading {self._path}: found “{new_cues[0].text:.30}” for a recording "
                    "without text, expected none; transcribe it again"
                )
            groups = _groups(rows, old_cues, new_cues)
            num_kept = sum(bool(group.after) for group in groups)
            if 2 * num_kept < len(groups):
                raise ConfigError(
                    f"reading {self._path}: found texts for {num_kept} of {len(groups)} segments, "
                    "expected most of them; export all segments, or remove them in corpus-asr view"
                )
            for group in groups:
                segments = self._segments(group, channel)
                if segments is not None:
                    yield correct(self._row["recording_id"], group.rows, segments)

    def _channel_of(self, cue: EditedCue) -> int | None:
        """Return the channel of a cue, given by its label if the file has several."""
        if self._path.suffix == _TIERED:
            if self._channels in ([], [None]):
                return None
            number = (cue.speaker or "").rpartition(" ")[2]
            if number.isdecimal() and int(number) in self._channels:
                return int(number)
            raise self._other_layout(cue)
        if len(self._channels) < 2:
            return self._channels[0] if self._channels else None
        sides = {(segment.speaker, channel) for segments, channel in
                 zip(labelled(self._recording), self._channels, strict=True)
                 for segment in segments}  # fmt: skip
        channels = {channel for speaker, channel in sides if speaker == cue.speaker}
        if len(channels) != 1:
            raise self._other_layout(cue)
        return channels.pop()

    def _other_layout(self, cue: EditedCue) -> ConfigError:
        names = ", ".join(str(channel) for channel in self._channels)
        return ConfigError(
            f"reading {self._path}: found “{cue.text:.30}” of {cue.speaker or 'no speaker'}, "
            f"expected a label of one of the channels {names}; export it again and keep the labels"
        )

    def _check_times(self, cues: Sequence[EditedCue]) -> None:
        most_s = max([self._row["duration_s"] or 0.0, *(row["end_s"] for row in self._rows)])
        for cue in cues:
            if cue.end_s > most_s + 1.0:
                raise ConfigError(
                    f"reading {self._path}: found a text until {cue.end_s:.3f} s, expected times "
                    f"up to the end of the recording, {most_s:.3f} s; correct them"
                )
        for earlier, later in pairwise(cues):
            if later.start_s < earlier.end_s - _MOST_OVERLAP_S and later not in self._before:
                raise ConfigError(
                    f"reading {self._path}: found a text from {later.start_s:.3f} s after one "
                    f"until {earlier.end_s:.3f} s, expected an overlap of at most "
                    f"{_MOST_OVERLAP_S:g} s; correct these times"
                )

    def _segments(self, group: _Segments, channel: int | None) -> list[EditedSegment] | None:
        """Return the replacement of a group's segments; None if nothing changed."""
        old_cues, new_cues, rows = group.before, group.after, group.rows
        texts = [join_lines("\n".join(cue.text for cue in cues)) for cues in (old_cues, new_cues)]
        originals = [row["original"] for row in rows if row["original"] is not None]
        if originals and texts[1] == join_lines("\n".join(originals)) != texts[0]:
            return None  # exported before a correction was made, and not edited
        if self._is_same_layout(group) and _speakers(old_cues) == _speakers(new_cues):
            if texts[0] == texts[1]:
                return None
            if len(rows) == 1:
                times = {name: rows[0][name] for name in ("start_s", "end_s", "speaker")}
                return [EditedSegment(**times, text=texts[1])]
        kept = {(cue.start_s, cue.end_s): cue.speaker for cue in old_cues}
        return [
            EditedSegment(
                start_s=cue.start_s, end_s=cue.end_s, text=cue.text,
                speaker=self._speaker(cue, channel, kept, rows),
            )
            for cue in new_cues
        ]  # fmt: skip

    def _is_same_layout(self, group: _Segments) -> bool:
        old_cues, new_cues = group.before, group.after
        if [cue[:2] for cue in old_cues] == [cue[:2] for cue in new_cues]:
            return True
        # Text corrected since is split into other cues over the same time span.
        return (
            self._path.suffix in _CUES
            and all(row["corrected"] for row in group.rows)
            and bool(old_cues and new_cues)
            and abs(old_cues[0].start_s - new_cues[0].start_s) <= _SAME_S
            and abs(old_cues[-1].end_s - new_cues[-1].end_s) <= _SAME_S
        )

    def _speaker(
        self,
        cue: EditedCue,
        channel: int | None,
        kept: Mapping[tuple[float, float], str | None],
        rows: Sequence[Row],
    ) -> str | None:
        """Return the speaker by label or name; None: from the turns."""
        if (cue.start_s, cue.end_s) in kept and kept[cue.start_s, cue.end_s] == cue.speaker:
            return max(rows, key=lambda row: _shared_s(row, cue))["speaker"] if rows else None
        speaker = cue.speaker
        if self._path.suffix == _TIERED and speaker is not None:
            speaker = speaker if channel is None else speaker.rpartition(" ")[0]
            speaker = None if speaker == "text" else speaker
        row = self._row
        if speaker is None or speaker == channel_name(
            channel, row["audio_track"], row["audio_tracks"]
        ):
            return None
        return self._labels.get((channel, speaker)) or speaker


def _speakers(cues: Sequence[EditedCue]) -> list[str | None]:
    return [*dict.fromkeys(cue.speaker for cue in cues)]


def _shared_s(row: Row, cue: EditedCue) -> float:
    shared_s: float = min(row["end_s"], cue.end_s) - max(row["start_s"], cue.start_s)
    return shared_s


def _groups(
    rows: Sequence[Row], before: Sequence[EditedCue], after: Sequence[EditedCue]
) -> list[_Segments]:
    """Return segments of a channel in groups that share no cue, each with its cues."""
    group_of = list(range(len(rows)))
    starts_s = [row["start_s"] for row in rows]
    longest_s = max((row["end_s"] - row["start_s"] for row in rows), default=0.0)
    cues_of: list[tuple[int, bool, EditedCue]] = []
    for is_after, cues in ((False, before), (True, after)):
        for cue in cues:
            places = _rows_of(rows, starts_s, longest_s, cue)
            for at in places[1:]:
                old, new = group_of[at], group_of[places[0]]
                group_of = [new if group == old else group for group in group_of]
            if places:
                cues_of.append((places[0], is_after, cue))
    groups: dict[int, _Segments] = {}
    for at, row in enumerate(rows):
        groups.setdefault(group_of[at], _Segments()).rows.append(row)
    for at, is_after, cue in cues_of:
        group = groups[group_of[at]]
        (group.after if is_after else group.before).append(cue)
    return [group for group in groups.values() if group.before or group.after]


def _rows_of(
    rows: Sequence[Row], starts_s: Sequence[float], longest_s: float, cue: EditedCue
) -> list[int]:
    """Return the indices of a cue's segments, or of the nearest one if there are none."""
    middle_s = (cue.start_s + cue.end_s) / 2
    first = bisect_left(starts_s, cue.start_s - longest_s)
    near = range(max(0, first - 1), min(len(rows), bisect_right(starts_s, cue.end_s) + 1))
    places = [
        at for at in near
        if rows[at]["text"] and (
            rows[at]["start_s"] <= middle_s < rows[at]["end_s"]
            or _shared_s(rows[at], cue) > 0.5 * (rows[at]["end_s"] - rows[at]["start_s"])
        )
    ]  # fmt: skip
    if places or not near:
        return places
    return [max(near, key=lambda at: _shared_s(rows[at], cue))]
