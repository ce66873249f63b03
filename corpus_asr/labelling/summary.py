"""Numbers of a dataset: as JSON, console text, and its card.

Source: the Hub's dataset cards (front matter `configs`, `language`, `task_categories`).
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa

from corpus_asr.config.run import DatasetSettings
from corpus_asr.labelling.dataset import LOSSES, SELECTION_FOLDER, Note
from corpus_asr.labelling.rules import Amount, Rule, SelectionTally
from corpus_asr.labelling.splits import SPLITS, TEST, VALIDATION
from corpus_asr.labelling.writers import DATA_FOLDER, NemoWriter
from corpus_asr.report.text import (
    duration,
    printable,
    text_template,
)
from corpus_asr.schemas import EXAMPLES
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.units import shortened

_MOST_MESSAGES = 10
# Size categories of the Hub.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST_SIZE = "n>1M"
_MAX_TEXT = 300
_MARKUP = re.compile(r"([\\`*_{}\[\]|#~])")
_SUFFIXES = {"huggingface": "parquet", "webdataset": "tar"}


@dataclass(slots=True, kw_only=True)
class Split:
    """Examples of one split."""

    examples: int = 0
    seconds: float = 0.0
    shards: int = 0


@dataclass(slots=True, kw_only=True)
class Written:
    """Totals over shards."""

    splits: dict[str, Split] = field(default_factory=dict)
    lost: dict[str, Amount] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, note: Note) -> None:
        """Add a shard; one that lost everything has no file."""
        if note.examples:
            split = self.splits.setdefault(note.split, Split())
            split.examples += note.examples
            split.seconds += note.seconds
            split.shards += 1
        for reason, (count, seconds) in note.lost.items():
            self.lost.setdefault(reason, Amount()).add(seconds, int(count))
        self.messages = (self.messages + note.messages)[:_MOST_MESSAGES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The numbers of a dataset."""

    uri: str
    output: str
    recordings: int
    """Completed recordings of the run that did not fail."""
    failed: int
    unfinished: int
    audio_s: float
    """Audio of these recordings in seconds."""
    rules: Sequence[Rule]
    tally: SelectionTally
    written: Written
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    """Model and settings of the transcripts."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(split.examples for split in self.written.splits.values())

    @property
    def seconds(self) -> float:
        """Audio of all examples in seconds."""
        return sum(split.seconds for split in self.written.splits.values())


def summarize(
    tables: RunTables, rules: Sequence[Rule], tally: SelectionTally, written: Written, **named: Any
) -> Labelled:
    """Collect the numbers of a dataset."""
    [(recordings, failed, unfinished, audio_s)] = tables.rows(_COUNTS)
    return Labelled(
        recordings=recordings,
        failed=failed,
        unfinished=unfinished,
        audio_s=audio_s,
        rules=rules,
        tally=tally,
        written=written,
        **named,
    )


# Recordings with only failed parts are complete, too.
_COUNTS = """
select count(*) filter (complete and succeeded), count(*) filter (complete and not succeeded),
       count(*) filter (not complete),
       coalesce(exact_sum(if(complete and succeeded, end_s, 0)), 0.0)
from recordings
"""


def as_data(labelled: Labelled) -> dict[str, Any]:
    """Return a dataset's numbers as JSON-compatible values."""
    tally, written = labelled.tally, labelled.written
    rules = {}
    for rule in labelled.rules:
        counts = tally.rules[rule.name]
        amounts = {
            name: _amount(getattr(counts, name))
            for name in ("dropped", "matching", "alone", "unmeasured")
        }
        rules[rule.name] = {"drops": rule.says, **amounts}
    return {
        "dataset": labelled.uri,
        "output": labelled.output,
        "model": dict(labelled.model),
        "recordings": labelled.recordings,
        "failed": labelled.failed,
        "unfinished": labelled.unfinished,
        "audio_s": round(labelled.audio_s, 3),
        "segments": _amount(tally.everything),
        "kept": _amount(tally.kept),
        "corrected": _amount(tally.corrected),
        "rules": rules,
        "lost": {reason: _amount(lost) for reason, lost in sorted(written.lost.items())},
        "messages": written.messages,
        "splits": {
            name: {**asdict(split), "seconds": round(split.seconds, 3)}
            for name, split in sorted(written.splits.items())
        },
        "settings": dict(labelled.settings),
    }


def _amount(amount: Amount) -> dict[str, Any]:
    return {"count": amount.count, "seconds": round(amount.seconds, 3)}


def render(labelled: Labelled) -> str:
    """Return a dataset's numbers as text."""
    dropped: list[tuple[str, ...]] = [
        ("rule", "dropped", "", "would drop", "", "no other does", "")
    ]
    for rule in labelled.rules:
        counts = labelled.tally.rules[rule.name]
        # Rules without matches are omitted.
        if counts.matching.count:
            cells = map(_cells, (counts.dropped, counts.matching, counts.alone))
            dropped.append((rule.name, *chain.from_iterable(cells)))
    template = text_template("corpus_asr.labelling", "summary.txt.j2")
    text = template.render(
        LOSSES=LOSSES,
        labelled=labelled,
        tally=labelled.tally,
        dropped=dropped,
        unmeasured=_unmeasured(labelled.tally),
        empty=_empty_splits(labelled),
    )
    return text.rstrip("\n")


def _unmeasured(tally: SelectionTally) -> list[tuple[str, str, int]]:
    """Return name, column and number of segments of rules without data for some segments."""
    counts = ((name, column, tally.rules[name].unmeasured.count)
              for name, column in tally.measures.items())  # fmt: skip
    return [row for row in counts if row[2]]


def _empty_splits(labelled: Labelled) -> list[tuple[str, str]]:
    """Return requested splits without examples, with their settings."""
    keys = ((name, f"dataset.{name}_fraction") for name in (VALIDATION, TEST))
    return [
        (name, key)
        for name, key in keys
        if labelled.written.splits
        and labelled.settings.get(key)
        and name not in labelled.written.splits
    ]


def _cells(amount: Amount) -> tuple[str, str]:
    return f"{amount.count:,}", duration(amount.seconds)


def card_of(labelled: Labelled, settings: DatasetSettings, languages: Sequence[str]) -> str:
    """Return the card: Markdown with front matter for the Hub and `datasets`."""
    in_order = {name: labelled.written.splits.get(name) for name in SPLITS}
    splits = {name: split for name, split in in_order.items() if split is not None}
    # Without examples the card still shows how to load them.
    name, first = next(iter(splits.items()), ("train", Split(shards=1)))
    tars = f"{labelled.uri}/{DATA_FOLDER}/{name}-{{00000..{first.shards - 1:05d}}}.tar"
    template = text_template("corpus_asr.labelling", "card.md.j2", text=_escaped, json=_json)
    return template.render(
        DATA_FOLDER=DATA_FOLDER,
        LOSSES=LOSSES,
        SELECTION_FOLDER=SELECTION_FOLDER,
        labelled=labelled,
        tally=labelled.tally,
        unmeasured=_unmeasured(labelled.tally),
        split_by=settings.split_by,
        title=_title(labelled),
        languages=languages,
        size=next((name for most, name in _SIZES if labelled.examples < most), _LARGEST_SIZE),
        splits=splits,
        suffix=_SUFFIXES.get(settings.format),
        format=settings.format,
        tars=tars,
        manifest=NemoWriter.manifest.format(split="train"),
        columns=map(_column, EXAMPLES),
    )  # fmt: skip


def _title(labelled: Labelled) -> str:
    checkpoint = str(labelled.model["checkpoint"])
    # Only the last folder of a path; a Hub model ID includes its owner.
    is_address = checkpoint.startswith(("/", ".", "~")) or "://" in checkpoint
    name = checkpoint.rstrip("/").rpartition("/")[2] if is_address else checkpoint
    return f"Pseudo-labels by {name}"


def _column(field: pa.Field) -> tuple[str, str, str]:
    unit = field.metadata.get(b"unit")
    doc = field.metadata[b"doc"].decode() + (f" [{unit.decode()}]" if unit else "")
    return field.name, "audio" if field.name == "audio" else str(field.type), doc


def _json(value: Any) -> str:
    # URIs and titles are written as ASCII in YAML and code; settings as they are.
    return json.dumps(value, ensure_ascii=isinstance(value, str))


def _escaped(text: str) -> str:
    """Return a text escaped for Markdown and HTML, on one line."""
    plain = html.escape(shortened(printable(text), _MAX_TEXT), quote=False)
    return _MARKUP.sub(r"\\\1", plain)
