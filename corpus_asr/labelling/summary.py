"""The numbers of a dataset: as JSON, on a terminal, and as its card.

Source: the Hub's dataset cards (front matter `configs`, `language`, `task_categories`).
"""

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from corpus_asr.config.run import DatasetSettings
from corpus_asr.export.recordings import Index
from corpus_asr.labelling.dataset import DATA_FOLDER, LOSSES, SELECTION_FOLDER, Note, manifest_name
from corpus_asr.labelling.examples import SPLITS
from corpus_asr.labelling.rules import Amount, Rule, SelectionTally
from corpus_asr.report.text import counted, duration, row, table
from corpus_asr.schemas import EXAMPLES

MAX_SHOWN = 10
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
    """What the shards hold together."""

    splits: dict[str, Split] = field(default_factory=dict)
    lost: dict[str, Amount] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, note: Note) -> None:
        """Take a shard into account; one of which everything was lost is no file."""
        if note.examples:
            split = self.splits.setdefault(note.split, Split())
            split.examples += note.examples
            split.seconds += note.seconds
            split.shards += 1
        for reason, (count, seconds) in note.lost.items():
            self.lost.setdefault(reason, Amount()).add(seconds, int(count))
        self.messages = (self.messages + note.messages)[:MAX_SHOWN]
        self.shown = sorted(self.shown + note.shown, key=lambda each: each["example_id"])[
            :MAX_SHOWN
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The numbers of a dataset."""

    uri: str
    output: str
    recordings: int
    """Of the run, that are done and were not given up."""
    failed: int
    unfinished: int
    audio_s: float
    """Of those recordings."""
    rules: Sequence[Rule]
    tally: SelectionTally
    written: Written
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    """What made the transcripts, and how."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(split.examples for split in self.written.splits.values())

    @property
    def seconds(self) -> float:
        """Audio of all examples."""
        return sum(split.seconds for split in self.written.splits.values())


def summarise(
    index: Index, rules: Sequence[Rule], tally: SelectionTally, written: Written, **told: Any
) -> Labelled:
    """Put the numbers together."""
    heard, complete = (index.recordings[name].to_numpy() for name in ("heard", "complete"))
    done = heard & complete
    return Labelled(
        recordings=int(done.sum()),
        failed=int((~heard & complete).sum()),
        unfinished=int((~complete).sum()),
        audio_s=float(index.recordings["duration_s"].to_numpy()[done].sum()),
        rules=rules,
        tally=tally,
        written=written,
        **told,
    )


def as_data(found: Labelled) -> dict[str, Any]:
    """Return a data set's numbers as JSON has them."""
    return {
        "dataset": found.uri,
        "output": found.output,
        "model": dict(found.model),
        "recordings": found.recordings,
        "failed": found.failed,
        "unfinished": found.unfinished,
        "audio_s": round(found.audio_s, 3),
        "segments": _amount(found.tally.everything),
        "kept": _amount(found.tally.kept),
        "rules": {
            rule.name: {
                "drops": rule.says,
                "dropped": _amount(found.tally.rules[rule.name].dropped),
                "matching": _amount(found.tally.rules[rule.name].matching),
                "alone": _amount(found.tally.rules[rule.name].alone),
            }
            for rule in found.rules
        },
        "lost": {reason: _amount(lost) for reason, lost in sorted(found.written.lost.items())},
        "messages": found.written.messages,
        "splits": {
            name: {**asdict(split), "seconds": round(split.seconds, 3)}
            for name, split in sorted(found.written.splits.items())
        },
        "settings": dict(found.settings),
    }


def _amount(amount: Amount) -> dict[str, Any]:
    return {"count": amount.count, "seconds": round(amount.seconds, 3)}


def render(found: Labelled) -> str:
    """Return a data set's numbers as text."""
    return "\n".join(_lines(found))


def _lines(found: Labelled) -> Iterator[str]:
    yield f"{found.uri} from {found.output}"
    left = [f"{count:,} {what}" for count, what in
            ((found.failed, "failed"), (found.unfinished, "not done yet")) if count]  # fmt: skip
    aside = f"; {', '.join(left)}" if left else ""
    yield row(
        "heard", f"{counted(found.recordings, 'recording')}, {duration(found.audio_s)}{aside}"
    )
    everything, kept = found.tally.everything, found.tally.kept
    yield row("segments", f"{everything.count:,}, {duration(everything.seconds)}")
    rows: list[tuple[str, ...]] = [("rule", "dropped", "", "would drop", "", "no other does", "")]
    for rule in found.rules:
        tally = found.tally.rules[rule.name]
        if tally.matching.count:
            cells = (tally.dropped, tally.matching, tally.alone)
            rows.append((rule.name, *(cell for each in cells for cell in _cells(each))))
    if len(rows) > 1:
        yield from table("dropped", rows)
    yield row("kept", f"{kept.count:,} segments, {duration(kept.seconds)}")
    for reason, lost in sorted(found.written.lost.items()):
        yield row("lost", f"{counted(lost.count, 'example')}, {duration(lost.seconds)}: "
                          f"{LOSSES[reason]}")  # fmt: skip
    for name, split in sorted(found.written.splits.items()):
        yield row(name, f"{counted(split.examples, 'example')}, {duration(split.seconds)}, in "
                        f"{counted(split.shards, 'shard')}")  # fmt: skip
    if not found.written.splits:
        yield row("examples", "none: every segment was dropped")


def _cells(amount: Amount) -> tuple[str, str]:
    return f"{amount.count:,}", duration(amount.seconds)


def card_of(labelled: Labelled, settings: DatasetSettings, languages: Sequence[str]) -> str:
    """Return the card: Markdown with the front matter that the Hub and `datasets` read."""
    sections = [
        "\n".join(_front_matter(labelled, settings, languages)),
        f"# {_escaped(_title(labelled))}",
        "Speech with transcripts that a model wrote: nobody has read them. Rules chose what is "
        "likely to be right; what they dropped is in the table below.",
        _markdown_table(
            ("split", "examples", "audio", "shards"),
            [
                (name, f"{split.examples:,}", duration(split.seconds), f"{split.shards:,}")
                for name in _splits(labelled)
                for split in (labelled.written.splits[name],)
            ],
        ),
        f"```python\n{_loading_code(labelled, settings)}\n```",
        *_selection(labelled),
        *_examples(labelled),
        "## Columns",
        _markdown_table(("column", "type", ""), map(_column, EXAMPLES)),
        "## Model and settings",
        *(
            _markdown_table(
                (title, ""),
                [(f"`{name}`", _cell(value)) for name, value in values.items()
                 if value is not None],
            )
            for title, values in (("model", labelled.model), ("setting", labelled.settings))
        ),
        "## Before you train on it",
        "The rights in the audio are those of its source, and nothing here changes them. A "
        "recording is in one split only, but its speaker may be in several.",
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _front_matter(
    labelled: Labelled, settings: DatasetSettings, languages: Sequence[str]
) -> Iterator[str]:
    """Yield YAML; JSON, which it includes, where a value may hold anything."""
    yield "---"
    yield f"pretty_name: {json.dumps(_title(labelled))}"
    if languages:
        yield "language:"
        yield from (f"- {json.dumps(language)}" for language in languages)
    yield "task_categories:\n- automatic-speech-recognition"
    yield "tags:\n- audio\n- pseudo-labels\n- corpus-asr"
    size = next((name for most, name in _SIZES if labelled.examples < most), _LARGEST_SIZE)
    yield f"size_categories:\n- {size}"
    suffix = _SUFFIXES.get(settings.format)
    if suffix and labelled.written.splits:
        yield "configs:\n- config_name: default\n  data_files:"
        for split in _splits(labelled):
            yield f"  - split: {split}\n    path: {DATA_FOLDER}/{split}-*.{suffix}"
    yield "---"


def _title(labelled: Labelled) -> str:
    checkpoint = str(labelled.model["checkpoint"])
    is_address = checkpoint.startswith(("/", ".", "~")) or "://" in checkpoint
    name = checkpoint.rstrip("/").rpartition("/")[2] if is_address else checkpoint
    return f"Pseudo-labels by {name}"


def _splits(labelled: Labelled) -> list[str]:
    return [name for name in SPLITS if name in labelled.written.splits]


def _loading_code(labelled: Labelled, settings: DatasetSettings) -> str:
    if settings.format == "huggingface":
        uri = json.dumps(labelled.uri)
        return f"from datasets import load_dataset\n\ndata = load_dataset({uri})"
    if settings.format == "webdataset":
        splits = labelled.written.splits
        name = next(iter(_splits(labelled)), "train")
        last = splits[name].shards - 1 if splits else 0
        tars = json.dumps(f"{labelled.uri}/{DATA_FOLDER}/{name}-{{00000..{last:05d}}}.tar")
        return f"import webdataset\n\ndata = webdataset.WebDataset({tars}, shardshuffle=False)"
    return f"# NeMo: train_ds.manifest_filepath={labelled.uri}/{manifest_name('train')}"


def _selection(labelled: Labelled) -> Iterator[str]:
    tally = labelled.tally
    yield "## What was kept and what was dropped"
    left = f"; {labelled.failed:,} failed" if labelled.failed else ""
    left += f"; {labelled.unfinished:,} were not done yet" if labelled.unfinished else ""
    yield (
        f"{labelled.recordings:,} recordings of {duration(labelled.audio_s)} were transcribed"
        f"{left}. In them are {tally.everything.count:,} segments of "
        f"{duration(tally.everything.seconds)}; {tally.kept.count:,} of "
        f"{duration(tally.kept.seconds)} were kept. A segment counts under "
        "the first rule that drops it. *Would drop* is what a rule drops if it is the only one, "
        "*no other does* what would be kept without it."
    )
    rows = [("all", "", *_cells(tally.everything), "", "")]
    for rule in labelled.rules:
        counts = tally.rules[rule.name]
        others = (duration(counts.matching.seconds), duration(counts.alone.seconds))
        dropped = _cells(counts.dropped)
        rows.append((f"`{rule.name}`", _escaped(rule.says), *dropped, *others))
    rows.append(("**kept**", "", *_cells(tally.kept), "", ""))
    header = ("rule", "drops", "segments", "audio", "would drop", "no other does")
    yield _markdown_table(header, rows)
    for reason, lost in sorted(labelled.written.lost.items()):
        yield (
            f"Lost after that: {lost.count:,} examples, {duration(lost.seconds)}: {LOSSES[reason]}."
        )
    yield f"`{SELECTION_FOLDER}/` has every segment with its measures and the rules that drop it."


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _escaped(text)


def _examples(labelled: Labelled) -> Iterator[str]:
    kept = [
        (f"`{each['example_id']}`", _escaped(each["whisper_transcript"]))
        for each in labelled.written.shown
    ]
    dropped = [
        (f"`{name}`", _escaped(text))
        for name, rule in labelled.tally.rules.items()
        for text, _ in rule.shown
    ]
    if kept:
        yield "## Examples"
        yield _markdown_table(("example", "text"), kept)
    if dropped:
        yield "## What rules dropped, for example"
        yield _markdown_table(("rule", "text"), dropped)


def _column(field: pa.Field) -> tuple[str, str, str]:
    unit = field.metadata.get(b"unit")
    doc = field.metadata[b"doc"].decode() + (f" [{unit.decode()}]" if unit else "")
    kind = "audio" if field.name == "audio" else str(field.type)
    return f"`{field.name}`", kind, _escaped(doc)


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escaped(text: str) -> str:
    """Return a text that Markdown and HTML show as it is, on one line."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    plain = " ".join(plain.split())
    plain = plain if len(plain) <= _MAX_TEXT else f"{plain[:_MAX_TEXT]}..."
    return _MARKUP.sub(r"\\\1", html.escape(plain, quote=False))
