"""The card of a data set: what is in it, what was left out and why, for whoever trains on it.

In: the numbers. Out: Markdown with the front matter that the Hub and `datasets` read. Texts of
recordings are shown as text, whatever they hold. Knows no store.

Source: the Hub's dataset cards (front matter `configs`, `language`, `task_categories`).
"""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from corpus_asr.config.labelling import DatasetSettings
from corpus_asr.labelling.dataset import SELECTION_FOLDER, manifest_name
from corpus_asr.labelling.layouts import DATA_FOLDER
from corpus_asr.labelling.summary import Labelled
from corpus_asr.labelling.tally import Amount
from corpus_asr.labelling.writing import LOSSES
from corpus_asr.report.text import duration
from corpus_asr.schemas import EXAMPLES

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MOST = "n>1M"
_MAX_TEXT = 300
_MARKUP = re.compile(r"([\\`*_{}\[\]|#~])")
_SUFFIXES = {"huggingface": "parquet", "webdataset": "tar"}


def card_of(found: Labelled, settings: DatasetSettings, languages: Sequence[str]) -> str:
    """Return the card.

    Args:
        found: the data set's numbers.
        settings: how it was written.
        languages: of its examples.
    """
    lines = [*_front_matter(found, settings, languages), "", *_body(found, settings)]
    return "\n".join(lines).rstrip() + "\n"


def _front_matter(
    found: Labelled, settings: DatasetSettings, languages: Sequence[str]
) -> Iterator[str]:
    """Yield YAML; JSON, which it includes, where a value may hold anything."""
    yield "---"
    yield f"pretty_name: {json.dumps(_title(found))}"
    if languages:
        yield "language:"
        yield from (f"- {json.dumps(language)}" for language in languages)
    yield "task_categories:"
    yield "- automatic-speech-recognition"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("audio", "pseudo-labels", "corpus-asr"))
    yield "size_categories:"
    yield f"- {next((name for most, name in _SIZES if found.examples < most), _MOST)}"
    suffix = _SUFFIXES.get(settings.format)
    if suffix and found.written.splits:
        yield "configs:"
        yield "- config_name: default"
        yield "  data_files:"
        for split in _splits(found):
            yield f"  - split: {split}"
            yield f"    path: {DATA_FOLDER}/{split}-*.{suffix}"
    yield "---"


def _title(found: Labelled) -> str:
    checkpoint = str(found.model["checkpoint"])
    is_address = checkpoint.startswith(("/", ".", "~")) or "://" in checkpoint
    name = checkpoint.rstrip("/").rpartition("/")[2] if is_address else checkpoint
    return f"Pseudo-labels by {name}"


def _splits(found: Labelled) -> list[str]:
    order = ("train", "validation", "test")
    return [name for name in order if name in found.written.splits]


def _body(found: Labelled, settings: DatasetSettings) -> Iterator[str]:
    yield f"# {_escaped(_title(found))}"
    yield ""
    yield (
        "Speech with transcripts that a model wrote: nobody has read them. Rules chose what is "
        "likely to be right; what they dropped is in the table below."
    )
    yield ""
    yield from _table(
        ("split", "examples", "audio", "shards"),
        [
            (name, f"{split.examples:,}", duration(split.seconds), f"{split.shards:,}")
            for name in _splits(found)
            for split in (found.written.splits[name],)
        ],
    )
    yield ""
    yield from _how_to_read(found, settings)
    yield from _selection(found)
    yield from _examples(found)
    yield from _columns()
    yield from _model(found)
    yield "## Before you train on it"
    yield ""
    yield (
        "The rights in the audio are those of its source, and nothing here changes them. A "
        "recording is in one split only, but its speaker may be in several."
    )


def _how_to_read(found: Labelled, settings: DatasetSettings) -> Iterator[str]:
    yield "```python"
    if settings.format == "huggingface":
        yield "from datasets import load_dataset"
        yield ""
        yield f"data = load_dataset({json.dumps(found.uri)})"
    elif settings.format == "webdataset":
        name = next(iter(_splits(found)), "train")
        last = found.written.splits[name].shards - 1 if found.written.splits else 0
        tars = f"{found.uri}/{DATA_FOLDER}/{name}-{{00000..{last:05d}}}.tar"
        yield "import webdataset"
        yield ""
        yield f"data = webdataset.WebDataset({json.dumps(tars)}, shardshuffle=False)"
    else:
        yield f"# NeMo: train_ds.manifest_filepath={found.uri}/{manifest_name('train')}"
    yield "```"
    yield ""


def _selection(found: Labelled) -> Iterator[str]:
    tally = found.tally
    yield "## What was kept and what was dropped"
    yield ""
    left = f"; {found.failed:,} failed" if found.failed else ""
    left += f"; {found.unfinished:,} were not done yet" if found.unfinished else ""
    yield (
        f"{found.recordings:,} recordings of {duration(found.audio_s)} were transcribed{left}. In "
        f"them are {tally.everything.count:,} segments of {duration(tally.everything.seconds)}; "
        f"{tally.kept.count:,} of {duration(tally.kept.seconds)} were kept. A segment counts under "
        "the first rule that drops it. *Would drop* is what a rule drops if it is the only one, "
        "*no other does* what would be kept without it."
    )
    yield ""
    rows = [
        ("all", "", *_amount(tally.everything), "", ""),
        *(
            (
                f"`{rule.name}`",
                _escaped(rule.says),
                *_amount(tally.rules[rule.name].dropped),
                duration(tally.rules[rule.name].matching.seconds),
                duration(tally.rules[rule.name].alone.seconds),
            )
            for rule in found.rules
        ),
        ("**kept**", "", *_amount(tally.kept), "", ""),
    ]
    header = ("rule", "drops", "segments", "audio", "would drop", "no other does")
    yield from _table(header, rows)
    yield ""
    for reason, lost in sorted(found.written.lost.items()):
        yield (
            f"Lost after that: {lost.count:,} examples, {duration(lost.seconds)}: {LOSSES[reason]}."
        )
        yield ""
    yield f"`{SELECTION_FOLDER}/` has every segment with its measures and the rules that drop it."
    yield ""


def _amount(amount: Amount) -> tuple[str, str]:
    return f"{amount.count:,}", duration(amount.seconds)


def _model(found: Labelled) -> Iterator[str]:
    yield "## Model and settings"
    yield ""
    for title, values in (("model", found.model), ("setting", found.settings)):
        rows = [(f"`{name}`", _cell(value)) for name, value in values.items() if value is not None]
        yield from _table((title, ""), rows)
        yield ""


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _escaped(text)


def _examples(found: Labelled) -> Iterator[str]:
    if found.written.shown:
        yield "## Examples"
        yield ""
        yield from _table(
            ("example", "text"),
            [(f"`{each['example_id']}`", _escaped(each["whisper_transcript"]))
             for each in found.written.shown],
        )  # fmt: skip
        yield ""
    dropped = [
        (f"`{name}`", _escaped(text))
        for name, rule in found.tally.rules.items()
        for text, _ in rule.shown
    ]
    if dropped:
        yield "## What rules dropped, for example"
        yield ""
        yield from _table(("rule", "text"), dropped)
        yield ""


def _columns() -> Iterator[str]:
    yield "## Columns"
    yield ""
    yield from _table(
        ("column", "type", ""),
        [
            (f"`{field.name}`", "audio" if field.name == "audio" else str(field.type), _told(field))
            for field in EXAMPLES
        ],
    )
    yield ""


def _told(field: Any) -> str:
    metadata: Mapping[bytes, bytes] = field.metadata
    unit = metadata.get(b"unit")
    return _escaped(metadata[b"doc"].decode() + (f" [{unit.decode()}]" if unit else ""))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(cells)} |" for cells in rows)


def _escaped(text: str) -> str:
    """Return a text that Markdown and HTML show as it is, on one line."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    plain = " ".join(plain.split())
    plain = plain if len(plain) <= _MAX_TEXT else f"{plain[:_MAX_TEXT]}..."
    return _MARKUP.sub(r"\\\1", html.escape(plain, quote=False))
