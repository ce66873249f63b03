"""Turn a corpus into training data: transcribe it, select likely correct text, write a data set."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

from corpus_asr.config.run import DEFAULT_OPTIONS, PseudoLabelConfig, RunConfig, RunOptions
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.labelling.dataset import (
    SELECTION_NAME,
    ShardMaker,
    begin,
    complete,
    result_settings,
)
from corpus_asr.labelling.examples import Example, examples_of, shards_of
from corpus_asr.labelling.rules import Rule, SelectionTally, rules_of
from corpus_asr.labelling.selection import (
    Origin,
    Sources,
    check_words,
    decided,
    measure,
    open_sources,
    read_origin,
    selection_file,
)
from corpus_asr.labelling.splits import splits_of
from corpus_asr.labelling.summary import Labelled, Written, as_data, card_of, render, summarize
from corpus_asr.logs import event
from corpus_asr.pipelines import driver
from corpus_asr.pipelines.driver import AfterFinish, RunSummary
from corpus_asr.report.scoring import read_references
from corpus_asr.report.text import duration
from corpus_asr.runtime.resources import this_machine
from corpus_asr.runtime.terminal import line_writer
from corpus_asr.scratch import scratch_folder
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.run_state.forget import note_dataset
from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.own_sources import read_own_sources, source_folders
from corpus_asr.storage.run_state.run_files import new_run_id, open_run, outcomes_names
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.host_allowlist import FileRules
from corpus_asr.storage.stores.uri import normalize, redact_uri
from corpus_asr.units import counted, joined_names

_LOG = logging.getLogger(__name__)


def run(
    config: RunConfig,
    *,
    local: bool,
    progress: TextIO | None,
    options: RunOptions = DEFAULT_OPTIONS,
    after_finish: AfterFinish | None = None,
) -> RunSummary:
    """Transcribe the remaining recordings; when complete, select and write the dataset."""
    assert isinstance(config, PseudoLabelConfig)
    _check(config)
    summary = driver.run(
        config, local=local, progress=progress, options=options, after_finish=after_finish
    )
    if summary.remaining:  # a selection now would differ from that of the complete run
        outcome = f"nothing selected yet: {counted(summary.remaining, 'recording')} remaining"
    else:
        outcome = render(label(config, progress=progress, steal_lock=options.steal_lock))
    line_writer(progress)(outcome)
    return summary


# Settings of rules, and the measures that they need.
_MEASURED_BY = {
    "min_snr_db": "sound", "min_bandwidth_hz": "sound", "min_level_dbfs": "sound",
    "max_clipped_share": "sound", "max_duplicate_fraction": "fingerprint",
}  # fmt: skip


def _check(config: PseudoLabelConfig) -> None:
    if not config.model.is_named:
        raise ConfigError(
            "model.checkpoint: missing, expected an accurate model for training data; name one, "
            "such as large-v3"
        )
    rules_of(config.selection)
    # Checked before hours of transcription, which would have to be repeated.
    needed = {setting: f"{name} in extract.measures" for setting, name in _MEASURED_BY.items()
              if name not in config.extract.measures}  # fmt: skip
    if not config.extract.vad_filter:
        needed["min_speech_fraction"] = "extract.vad_filter: true"
    for setting, requirement in needed.items():
        if getattr(config.selection, setting) is not None:
            raise ConfigError(
                f"selecting by selection.{setting}: found none, expected {requirement}; set it, "
                f"or selection.{setting} to null"
            )
    _check_dataset(config)
    if config.dataset.split_by == "speaker" and not config.speakers.wanted:
        raise ConfigError(
            "splitting by speaker: found speakers: none, expected speakers; set speakers: corpus, "
            "or dataset.split_by: recording"
        )
    if config.selection.select != "own":
        check_words(config.decoding.model_dump(), "the settings")
    if config.selection.references is not None:
        read_references(config.selection.references, OutputStore.of(config.output).options)


def _check_dataset(config: PseudoLabelConfig) -> None:
    dataset, output = (
        normalize(section.uri).rstrip("/") for section in (config.dataset, config.output)
    )
    if dataset == output:
        raise ConfigError(
            f"beginning a dataset in {redact_uri(dataset)}: found the output folder of the run, "
            "expected another one; change dataset.uri"
        )


def label(
    config: PseudoLabelConfig, *, progress: TextIO | None = None, steal_lock: bool = False
) -> Labelled:
    """Select from the transcripts, and write missing parts of the dataset."""
    store = OutputStore.of(config.dataset)
    _check_dataset(config)
    rules = rules_of(config.selection)
    say = line_writer(progress)
    output = open_run(config.output.uri, options=StoreOptions.of_output(config.output))
    outcomes_names(output, advice="transcribe with `corpus-asr run` first, or correct output.uri")
    with (
        open_sources(output, config.selection) as sources,
        Lock(store, new_run_id(), steal=steal_lock, say=say) as lock,
    ):
        store = lock.store
        origin = read_origin(output)
        # If the run was continued, the dataset differs: its digest is part of the settings.
        state = f"{origin.fingerprint} {sources.digest()}"
        recordings = sources.tables.table("select recording_id, duration_s from wanted")
        splits = splits_of(
            recordings, sources.turns, config.dataset, output.uri, originals=sources.originals
        )
        settings = result_settings(config.selection, config.dataset, state)
        begin(store, settings)
        try:
            note_dataset(output, redact_uri(store.uri))
        except FetchError as error:  # transcripts of others may be read-only
            event(_LOG, logging.INFO, "dataset_not_noted", why=str(error))
        tally, written, languages = _write(config, store, sources, origin, rules, splits, say=say)
        written_by, revision = (joined_names(name[at] for name in tally.models) for at in (0, 1))
        model = origin.as_data(written_by, revision)
        if sources.other is not None and config.selection.select != "own":
            second = read_origin(sources.other[0])
            model |= {"against": second.checkpoint, "against.revision": second.revision}
        labelled = summarize(
            sources.tables,
            rules,
            tally,
            written,
            uri=redact_uri(store.uri),
            output=origin.transcripts,
            model=model,
            settings=settings,
        )
        complete(
            store,
            card=card_of(labelled, config.dataset, sorted(languages)),
            numbers=as_data(labelled),
            splits=list(written.splits),
            layout=config.dataset.format,
        )
        return labelled


def _write(
    config: PseudoLabelConfig,
    store: OutputStore,
    sources: Sources,
    origin: Origin,
    rules: tuple[Rule, ...],
    splits: Mapping[str, str],
    *,
    say: Callable[[str], None],
) -> tuple[SelectionTally, Written, set[str]]:
    """Write selection and shards; return the counts of both, and the languages."""
    tally = SelectionTally.of(rules)
    written, languages = Written(), set[str]()
    workers = config.dataset.workers
    maker = ShardMaker(
        store,
        config.dataset,
        cutter={
            "store": _recordings(config, sources.store),
            "channels": origin.channels,
            "audio_format": config.dataset.audio_format,
        },
        timeout_s=config.extract.item_timeout_s,
        workers=this_machine().cores if workers == "auto" else workers,
    )
    # On disk: rules such as `copies` need all segments measured before the first decision.
    with scratch_folder() as folder:
        path = str(folder / "segments.parquet")
        hashes = measure(sources, config.selection, path)
        say(f"{counted(len(hashes), 'segment')} measured")
        table = str(folder / "selection.parquet")
        with selection_file(table) as add:
            chosen = _with_examples(
                config, decided(path, hashes, rules), splits, tally, add, languages
            )
            for note in maker.write(shards_of(chosen, config.dataset)):
                written.add(note)
                say(f"{note.name}: {counted(note.examples, 'example')}, {duration(note.seconds)}")
        filesystem.upload(table, store.address(SELECTION_NAME), store.options)
    return tally, written, languages


def _recordings(config: PseudoLabelConfig, output: OutputStore) -> StoreOptions:
    """Return options for reading recordings; untrusted tables may name any file and host."""
    record = read_own_sources(output)
    # A manifest is listed again only if no run of this user recorded its folders.
    listing = FileListing(config.source) if record is None else ()
    folders = (
        *source_folders(config.source, listing),
        *(record.folders if record is not None else ()),
    )
    options = StoreOptions.of(config.source)
    trusted = record is not None and options.hosts.trusted_names
    hosts = replace(options.hosts, trusted_names=trusted)
    return replace(options, hosts=hosts, files=FileRules(folders=folders))


def _with_examples(
    config: PseudoLabelConfig,
    recordings: Iterator[list[dict[str, Any]]],
    splits: Mapping[str, str],
    tally: SelectionTally,
    add: Callable[[Sequence[dict[str, Any]]], None],
    languages: set[str],
) -> Iterator[tuple[dict[str, Any], list[Example]]]:
    for rows in recordings:
        examples = examples_of(rows, config.dataset)
        for row in rows:
            row["split"] = splits[row["recording_id"]]
            tally.add(row)
        add(rows)
        languages.update(example.row["language"] for example in examples if example.row["language"])
        yield rows[0], examples
