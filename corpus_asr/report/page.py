"""A run's page: everything read once, in bounded memory, and put into the templates."""

import base64
import datetime
import hashlib
import itertools
import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from corpus_asr.confidence import LOW_WORD_CONFIDENCE
from corpus_asr.config.document import hide_secrets
from corpus_asr.config.run import CLASSIFY_AUDIO, ReportSettings
from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.logs import event
from corpus_asr.report import formatting
from corpus_asr.report.formatting import cut, link, shared, visible
from corpus_asr.report.numbers import balance_problems, failure_examples, failures_csv
from corpus_asr.report.run import (
    Report,
    counted_run,
    last_runs,
    output_numbers,
    run_entry,
    write_entry,
)
from corpus_asr.report.samples import (
    MAX_CLIP_S,
    Details,
    Sampler,
    cut_clips,
)
from corpus_asr.report.status import (
    DEAD,
    FINISHED,
    SILENT,
    STATE_WORDS,
    STOPPED,
    activity_values,
    load_status,
)
from corpus_asr.report.text import clock, duration, now
from corpus_asr.storage.run_state.own_sources import source_options
from corpus_asr.storage.run_state.run_files import (
    CONFIG_NAME,
    EVALUATION_NAME,
    PAGE_NAME,
    failures_name,
)
from corpus_asr.storage.run_state.table_names import RUN_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import (
    LOCAL,
    normalize,
    parent,
    redact_uri,
    scheme_of,
    without_secrets,
)
from corpus_asr.units import counted

_LOG = logging.getLogger(__name__)

# Failures in the page; a CSV file next to it has all. With 600 bytes each, 1.2 MB at most.
MOST_KINDS, MOST_OF_A_KIND = 40, 50
MOST_GROUPS = 12  # of an evaluation
# About 600 MiB, and 200 MiB and a minute for each million, which the driver of a larger run may not
# have to spare.
MOST_AT_THE_END = 2_000_000
_BADGES = {DEAD: "bad", STOPPED: "warn", SILENT: "warn", FINISHED: "good"}
_STAGES = {"extract": "extracting", "transcribe": "transcribing"}


def write_page(
    store: OutputStore,
    uri: str,
    *,
    at_the_end: bool = False,
    embed_audio: bool | None = None,
    audio_options: StorageOptions = NO_OPTIONS,
) -> Report:
    """Write the page of an output folder to a path or URI, and return its counts.

    Next to it goes a CSV file of all failures, if there are any. Clips are embedded as
    `embed_audio` or else the run's `report.embed_audio` says; recordings are read with
    `audio_options` beside those that the run recorded.
    """
    uri = normalize(uri)
    sampler = Sampler(store)
    # All rows are read once, for counts and samples alike.
    with counted_run(store, sampler) as (report, tables):
        details = sampler.details(tables)
        failures = failure_examples(tables, MOST_OF_A_KIND, of_groups=MOST_KINDS)
        in_csv = failures_csv(tables) if report.statistics.failures else None
    config = store.read_json(CONFIG_NAME) or {}
    if embed_audio is None:
        embed_audio = _report_settings(config).embed_audio
    run = (store.read_json(RUN_NAME) or {}) if report.finished else {}
    values = {
        **_values(store, report, details, config, run, at_the_end=at_the_end),
        **_last_runs(store, report, run, at_the_end=at_the_end),
        **_clips(store, details, config, audio_options, embed=embed_audio),
        # Files are linked to only from a page that lies on this machine.
        "link": partial(link, folder=parent(uri) if scheme_of(uri) == LOCAL else None),
        "failures": failures,
        # A colon in the first step would be taken for a scheme.
        "failures_file": f"./{quote(failures_name(uri.rpartition('/')[2]))}",
    }
    html = render_document(environment().get_template("page.html.j2"), **values)
    # First what the page links to.
    if in_csv is not None:
        filesystem.write_atomic(failures_name(uri), in_csv, store.options)
    elif filesystem.exists(failures_name(uri), store.options):
        filesystem.remove(failures_name(uri), store.options)
    filesystem.write_atomic(uri, html.encode(), store.options)
    return report


def write_page_at_the_end(
    store: OutputStore, num_recordings: int, *, audio_options: StorageOptions = NO_OPTIONS
) -> None:
    """Write the report of a finished run to its output folder, or log the error."""
    why = None
    if num_recordings > MOST_AT_THE_END:
        why = f"{num_recordings:,} recordings: write it with `corpus-asr report --html`"
    else:
        try:
            page = store.address(PAGE_NAME)
            write_page(store, page, at_the_end=True, audio_options=audio_options)
        except Exception as error:  # a report must not fail a run
            why = f"{type(error).__name__}: {error}"
    if why is not None:
        event(_LOG, logging.WARNING, "page_not_written", uri=redact_uri(store.uri), why=why)


def render_document(template: Template, **values: Any) -> str:
    """Return a rendered template based on `document.html.j2`, with its style, script and policy."""
    # The policy allows only these styles and scripts: no style attributes, no handlers in
    # attributes, no requests. Source: https://www.w3.org/TR/CSP3/.
    style, script = shared("style.css") + "\n" + shared("page.css"), shared("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    )
    return template.render(style=style, script=script, policy=policy, **values)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def environment() -> Environment:
    """Return the template environment: values are escaped, and undefined names are errors."""
    templates = Environment(
        loader=PackageLoader(__package__, "html/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        # Applied to every value, so that no template can omit it.
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "clock": clock,
        "commas": "{:,}".format,
        "coordinate": formatting.coordinate,
        "counted": counted,
        "cut": cut,
        "duration": duration,
        "fraction": formatting.fraction,
        "moment": formatting.moment,
        "percent": "{:.0%}".format,
        "quoted": shlex.quote,
        "rate": lambda rate: "-" if rate is None else f"{rate:.1%}",
        "unquoted": unquote,
    }
    templates.globals |= {
        "LOW_WORD_CONFIDENCE": LOW_WORD_CONFIDENCE,
        "MAX_CLIP_S": MAX_CLIP_S,
        "MOST_KINDS": MOST_KINDS,
        "MOST_OF_A_ROW": 240,  # characters of a message in long tables
        "MOST_OF_A_TEXT": formatting.MOST_OF_A_TEXT,
        "MOST_ROWS": 30,  # Whisper has a hundred languages, a classifier thousands of labels
        "MOST_SETTINGS": 400,
        "confidence_class": formatting.confidence_class,
        "confidence_words": formatting.confidence_words,
        "failure_kind": failure_kind,
        "language_attributes": formatting.language_attributes,
        "language_name": formatting.language_name,
        "message": formatting.message,
        "sample_words": formatting.sample_words,
        "stage_words": lambda stage: _STAGES.get(stage, cut(stage, 60)),
    }
    return templates


def _shown(value: Any) -> Any:
    if hasattr(value, "__html__"):
        return value
    return "" if value is None else visible(str(value))


def _report_settings(config: dict[str, Any]) -> ReportSettings:
    try:
        return ReportSettings.model_validate(config.get("report") or {})
    except ValueError as error:  # of another version or program
        event(_LOG, logging.WARNING, "report_settings_not_read", why=str(error))
        return ReportSettings()


def _clips(
    store: OutputStore,
    details: Details,
    config: dict[str, Any],
    audio_options: StorageOptions,
    *,
    embed: bool,
) -> dict[str, Any]:
    """Return the clips of samples, and the reason if there are none."""
    samples = (*details.unsure, *details.random)
    if not embed:
        return {"clips": {}, "no_clips": "audio is switched off for this report"}
    if not config.get("source"):
        return {"clips": {}, "no_clips": "the run's settings are missing"}
    clips = cut_clips(
        samples,
        details.of_samples,
        store=source_options(store, storage=audio_options),
        channels=(config.get("extract") or {}).get("channels", "mix"),
    )
    return {"clips": clips, "no_clips": ""}


def _last_runs(
    store: OutputStore, report: Report, run: dict[str, Any], *, at_the_end: bool
) -> dict[str, Any]:
    """Return the numbers of the last runs, and store those of this one."""
    entries = last_runs(store)
    output = output_numbers(report)
    if output is not None and report.run_id is not None:
        entry = run_entry(store, report.run_id, finished_at=run.get("finished_at", now()))
        entry = replace(entry, output=output)
        if at_the_end:
            write_entry(store, entry)
        entries = [entry, *(past for past in entries if past.run_id != report.run_id)]
    return {"runs": [entry for entry in entries if entry.output is not None]}


def _accuracy(store: OutputStore, *, started_at: str | None) -> dict[str, Any] | None:
    """Return the last evaluation of the output folder, as written by `evaluate`."""
    evaluation = store.read_json(EVALUATION_NAME)
    try:
        group_rows = [evaluation["by"].get(name, ()) for name in ("set", "language")]
        groups = [
            {"name": str(row["name"])}
            | {name: int(row[name]) for name in ("recordings", "words")}
            | {name: None if row[name] is None else float(row[name]) for name in ("wer", "cer")}
            # Older evaluations have no interval.
            | {"interval": row.get("wer_interval") and [float(x) for x in row["wer_interval"]]}
            for row in itertools.islice(itertools.chain([evaluation], *group_rows), MOST_GROUPS)
        ]
        return {
            "groups": groups,
            "before": started_at is not None
            and _time(evaluation["evaluated_at"]) < _time(started_at),
            **{name: str(evaluation[name]) for name in ("evaluated_at", "references")},
            **{name: int(evaluation[name]) for name in ("missing", "failed")},
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # missing, or of another version


def _values(
    store: OutputStore,
    report: Report,
    details: Details,
    config: dict[str, Any],
    run: dict[str, Any],
    *,
    at_the_end: bool,
) -> dict[str, Any]:
    status, counts = load_status(store), report.statistics
    classifies = config.get("pipeline") == CLASSIFY_AUDIO
    # A command that writes the report at its end still holds the lock.
    state = status.state
    if at_the_end:
        state = FINISHED if report.finished else STOPPED
    words, _, advice = STATE_WORDS[state].replace("; ", ": ", 1).partition(": ")
    snapshot = status.snapshot or report.snapshot
    return {
        "report": report,
        "name": formatting.name_of(report.uri),
        "counts": counts,
        "accounting": report.accounting,
        "accuracy": _accuracy(store, started_at=run.get("started_at")),
        "details": details,
        "classifies": classifies,
        "finished": state == FINISHED,
        "alive": status.alive and not at_the_end,
        "written_at": now(),
        "badge": _BADGES.get(state, ""),
        "state": _sentence(words),
        "advice": f"{_sentence(advice)}." if advice else "",
        "outcomes": _outcome_bars(report.outcomes),
        "problems": balance_problems(report.accounting, finished=state == FINISHED),
        **activity_values(snapshot),
        "classes": counts.labels if classifies else counts.languages,
        "settings": list(_settings(config)),
        "versions": run.get("versions") or {},
    }


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _outcome_bars(outcomes: Sequence[tuple[str, int]]) -> list[tuple[str, str, int, float]]:
    # Style, name, number of recordings, and start of the bar of each outcome.
    numbers = [count for _, count in outcomes]
    starts = itertools.accumulate(numbers, initial=0)
    styles = ("ok", "none", "failed", "started", "waiting")
    return [
        (style, *outcome, at / (sum(numbers) or 1))
        for style, outcome, at in zip(styles, outcomes, starts, strict=False)
    ]


def _settings(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str | None]]:
    for name, value in values.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, dict) and value:
            yield from _settings(value, key)
        elif isinstance(value, bool):
            yield key, "yes" if value else "no"
        elif value is None:
            yield key, None
        else:
            yield key, cut(hide_secrets(without_secrets(str(value))), 300)
