"""`corpus-asr init`, `plan`, `run`, `nightly`, `label` and `finetune`: jobs of a configuration.

Imports nothing that `--help` would have to wait for.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corpus_asr.cli.archive import first_lines
from corpus_asr.cli.failures import EXIT_LOCKED, EXIT_SOME_FAILED, readable_errors, say
from corpus_asr.cli.options import (
    LARGER_OPTION,
    AsJson,
    Config,
    Local,
    Model,
    Overrides,
    Redo,
    StealLock,
    config_file,
    note_model_of,
    overrides_of,
    print_result,
    progress_lines,
)
from corpus_asr.config.decoding import PACKAGED_CHECKPOINT, default_model_notice
from corpus_asr.errors import ConfigError, LockedError
from corpus_asr.scratch import scratch_folder
from corpus_asr.threads import one_thread_for_arrays

if TYPE_CHECKING:
    from corpus_asr.activity import Estimate
    from corpus_asr.config.load import Setting
    from corpus_asr.config.run import RunConfig
    from corpus_asr.pipelines.driver import RunSummary
    from corpus_asr.report.nightly import Night
    from corpus_asr.runtime.estimate import Survey
    from corpus_asr.runtime.speeds import Machine
    from corpus_asr.storage.run_state.plan import Plan
    from corpus_asr.storage.run_state.tables import OutputStore


class Job(StrEnum):
    """Kind of job: values of the key `pipeline`."""

    transcribe = "transcribe_corpus"
    classify = "classify_audio"
    pseudo_label = "pseudo_label"


_DEFAULT_MODELS = {
    Job.transcribe: PACKAGED_CHECKPOINT,
    # It has to know several languages.
    Job.classify: "small",
    # Labels are no better than their model.
    Job.pseudo_label: "large-v3",
}


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")] = Path(
        "corpus-asr.yaml"
    ),
    pipeline: Annotated[Job, typer.Option(help="Pipeline of the job.")] = Job.transcribe,
    source: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Recordings: a file, folder or glob; or a manifest."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of the tables.")
    ] = None,
    model: Model = None,
    full: Annotated[
        bool, typer.Option("--full", help="Write all keys, not only the common ones.")
    ] = (False),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = (False),
) -> None:
    """Write the YAML file of a job, with a comment on every key."""
    with readable_errors():
        if file.exists() and not force:
            raise ConfigError(
                f"writing {file}: found an existing file, expected none; choose another name, or "
                "add --force"
            )
        chosen = _source_keys("recordings" if source is None else source) | {
            "model.checkpoint": _DEFAULT_MODELS[pipeline] if model is None else model,
            "output.uri": "output" if output is None else output,
        }
        if pipeline is Job.pseudo_label:
            chosen["dataset.uri"] = f"{chosen['output.uri'].rstrip('/')}-dataset"
        _write(file, pipeline.value, chosen, full=full)
        typer.echo(f"{file}: written")
        if model is None:
            typer.echo(_model_line(pipeline))
        if source is None:
            typer.echo("first set source.uri in it to your recordings")
        for command, words in _next(file, pipeline):
            typer.echo(f"  {command:<46}  {words}")


def _model_line(pipeline: Job) -> str:
    if pipeline is Job.transcribe:
        return default_model_notice(LARGER_OPTION)
    return f"model: {_DEFAULT_MODELS[pipeline]}, fetched from the hub; --model names another one"


def _source_keys(source: str) -> dict[str, str]:
    from corpus_asr.storage.manifest import is_manifest
    from corpus_asr.storage.stores.uri import is_table

    if not is_manifest(source):
        return {"source.uri": source}
    column = _audio_column(source) if is_table(source) else None
    if column is not None:
        return {"source.uri": source, "source.audio_column": column}
    return {"source.manifest": source}


def _audio_column(table: str) -> str | None:
    """Return the audio column of a local table; None for a manifest."""
    from corpus_asr.storage.stores.cells import audio_table
    from corpus_asr.storage.stores.store import StoreError

    try:
        with open(table, "rb") as file, audio_table(file, None) as audio:
            return audio.column
    except (OSError, StoreError):  # on another machine, or a manifest: judged by its name
        return None


def _write(file: Path, pipeline: str, chosen: dict[str, str], *, full: bool) -> None:
    from corpus_asr.config.load import load_config, written

    text = (
        "# Written by `corpus-asr init`. Keys that are comments show the default that they keep."
        "\n# Relative paths start at the folder that you call from. Credentials do not belong here:"
        "\n# the environment, a profile or the machine's role has them.\n\n"
    ) + written(pipeline, chosen, full=full)
    try:
        # Validated before writing: an existing file is only replaced by a valid one.
        with scratch_folder() as folder:
            draft = folder / file.name
            draft.write_text(text, encoding="utf-8")
            load_config(draft)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(draft), f"what {file} would be")) from error
    except OSError as error:
        raise ConfigError(
            f"writing {file}: {error.strerror}, expected a writable file; choose another"
        ) from error


def _next(file: Path, pipeline: Job) -> list[tuple[str, str]]:
    steps = [
        (f"corpus-asr plan {file} --check", "what would be done, and whether it can be"),
        (f"corpus-asr run {file}", "do it; again, to continue"),
        (f"corpus-asr run {file} --local", "the same, in this process, without Ray"),
    ]
    if pipeline is Job.pseudo_label:
        steps.append((f"corpus-asr label {file}", "select again, with other rules"))
    return steps


def run(
    config: Config,
    overrides: Overrides = None,
    local: Local = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help=(
                "Also retry failures of settings and of this program; failures of the store, "
                "permissions, network or machine are always retried."
            ),
        ),
    ] = False,
    retry_all_failed: Annotated[
        bool, typer.Option("--retry-all-failed", help="Retry all failed recordings.")
    ] = False,
    redo: Redo = None,
    steal_lock: StealLock = False,
) -> None:
    """Transcribe or classify a corpus, or continue where an earlier run stopped."""
    # --redo is recorded: repeating it would restart from scratch.
    advice = "run the same command again" + ("" if redo is None else ", without --redo,")
    advice += " to continue"
    with readable_errors(on_interrupt=advice):
        from corpus_asr.config.load import load_config
        from corpus_asr.config.run import PSEUDO_LABEL, Retry, RunOptions

        settings = load_config(config, overrides or ())
        note_model_of(settings)
        retry = Retry.failed if retry_failed else Retry.environment
        options = RunOptions(
            steal_lock=steal_lock,
            redo=redo,
            retry=Retry.all if retry_all_failed else retry,
        )
        if settings.pipeline == PSEUDO_LABEL:
            from corpus_asr.pipelines.pseudo_label import run as run_job
        else:
            from corpus_asr.pipelines.driver import run as run_job
        from corpus_asr.report.page import write_page_at_the_end

        summary = run_job(
            settings,
            local=local,
            progress=progress_lines(),
            options=options,
            after_finish=functools.partial(
                write_page_at_the_end, audio_options=settings.source.bound_options
            ),
        )
        print_summary(settings, summary)


def print_summary(config: "RunConfig", summary: "RunSummary") -> None:
    """Print the run's summary; exit with 1 if too many recordings or hook calls failed."""
    from corpus_asr.units import counted

    typer.echo(summary_words(summary))
    allowed = config.output.max_failed_fraction
    if summary.failed_fraction > allowed:
        say(
            f"{summary.processed_failed:,} of {counted(summary.processed, 'recording')} of "
            f"this run failed ({summary.failed_fraction:.1%}), more than "
            f"output.max_failed_fraction allows ({allowed:.1%}){_mostly(config)}; see corpus-asr "
            f"report {summary.output_uri}"
        )
        raise SystemExit(EXIT_SOME_FAILED)
    failed = [name for name, count in summary.hooks.items() if count.failed_fraction > allowed]
    if failed:
        words = f"more failed in hooks/{', '.join(failed)} than output.max_failed_fraction allows"
        say(f"{words} ({allowed:.1%}); see the log, and their error_message")
        raise SystemExit(EXIT_SOME_FAILED)


def _mostly(config: "RunConfig") -> str:
    from corpus_asr.failure_kinds import failure_kind
    from corpus_asr.storage.run_state.run_files import read_snapshot
    from corpus_asr.storage.run_state.tables import OutputStore

    store = OutputStore.of(config.output)
    snapshot = read_snapshot(store)
    kinds = snapshot.failures if snapshot is not None else ()
    most = max(kinds, key=lambda kind: kind.count, default=None)
    if most is None:
        return ""
    example = f", such as {most.examples[0]}" if most.examples else ""
    advice = failure_kind(most.kind, retryable=most.retryable).advice
    return f"; {most.count} {most.kind}{example}: {advice}"


def summary_words(summary: "RunSummary") -> str:
    """Return the status counts of the recordings, and what this run processed."""
    from corpus_asr.report.text import duration
    from corpus_asr.units import counted

    this_run = (
        f"this run: {counted(summary.processed, 'recording')}, "
        f"{duration(summary.speed.audio_s)} of audio in {duration(summary.speed.wall_s)} "
        f"(RTFx {summary.speed.rtfx:.1f})"
    )
    if not summary.planned:
        this_run = "this run: nothing to do"
    made = counted(summary.segments, summary.made.removesuffix("s"))
    earlier = ""
    if summary.earlier:
        earlier = f" ({summary.earlier:,} not done keep the text of an earlier version)"
    return (
        f"{summary.output_uri}: {counted(summary.listed, 'recording')}, {summary.done:,} done "
        f"({summary.no_speech:,} without speech), {summary.failed:,} failed{earlier}; "
        f"{made} from {duration(summary.audio_s)} of audio\n{this_run}"
        + (f", {summary.moved:,} moved" if summary.moved else "")
        + (f", {summary.erased:,} erased and skipped" if summary.erased else "")
        + "".join(f"\nhook {name}: {outcome.words}" for name, outcome in summary.hooks.items())
    )


def nightly(
    config: Annotated[str, config_file("such as configs/nightly.yaml")],
    overrides: Annotated[
        list[str] | None, overrides_of("Override a key, such as nightly.stop_after_h=6.")
    ] = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Run a job for new recordings, within time and failure limits, and write a summary."""
    from corpus_asr.config.load import load_config
    from corpus_asr.pipelines.nightly import run as run_night
    from corpus_asr.report.nightly import as_data, markdown

    def show(night: "Night") -> None:
        print_result(as_data(night), markdown(night).rstrip("\n"), as_json=as_json)

    with readable_errors(on_interrupt="the next run continues"):
        settings = load_config(config, overrides or ())
        note_model_of(settings)
        try:
            night = run_night(settings, local=local, progress=progress_lines(), show=show)
        except LockedError as error:
            say(str(error))
            raise typer.Exit(EXIT_LOCKED) from None
        if night.over_limit is not None:
            say(f"{night.over_limit}; see corpus-asr report {night.output}")
            raise typer.Exit(EXIT_SOME_FAILED)


def label(
    config: Annotated[str, config_file("as configs/pseudo_label.yaml")],
    overrides: Annotated[
        list[str] | None, overrides_of("Override a key, as selection.min_confidence=0.8.")
    ] = None,
    steal_lock: StealLock = False,
    as_json: AsJson = False,
) -> None:
    """Select training data from the transcripts of a run and write a dataset."""
    from corpus_asr.config.load import load_config
    from corpus_asr.config.run import PSEUDO_LABEL, PseudoLabelConfig

    advice = "run the same command again to continue"
    with readable_errors(on_interrupt=advice):
        settings = load_config(config, overrides or (), lists_source=False)
        if not isinstance(settings, PseudoLabelConfig):
            raise ConfigError(
                f"reading {config}: found pipeline: {settings.pipeline}, expected {PSEUDO_LABEL}; "
                "add the sections of configs/pseudo_label.yaml"
            )
        from corpus_asr.labelling.summary import as_data, render
        from corpus_asr.pipelines.pseudo_label import label as select_and_write

        summary = select_and_write(settings, progress=progress_lines(), steal_lock=steal_lock)
        print_result(as_data(summary), render(summary), as_json=as_json)


def finetune(
    config: Annotated[str, config_file("such as configs/finetune.yaml")],
    overrides: Annotated[
        list[str] | None, overrides_of("Override a key, such as training.max_steps=300.")
    ] = None,
) -> None:
    """Fine-tune a Whisper or Speech2Text checkpoint on labelled audio, or resume a training."""
    one_thread_for_arrays()
    with readable_errors(on_interrupt="run the same command again to resume"):
        from corpus_asr.config.load import load_finetune

        settings = load_finetune(config, overrides or ())
        from corpus_asr.pipelines.finetune import run

        trained = run(settings, progress=progress_lines())
        for step, wer in trained.error_rates:
            typer.echo(f"step {step:,}: wer {wer:.2%}")
        typer.echo(f"{trained.model_path}: kept step {trained.kept_step:,} of {trained.steps:,}")


def plan(
    config: Config,
    overrides: Overrides = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Also decode and transcribe a recording, and check the output and the memory.",
        ),
    ] = False,
    speed: Annotated[
        float | None,
        typer.Option(
            metavar="RTFX", help="Speed of one worker, in seconds of audio per second: 180."
        ),
    ] = None,
    redo: Redo = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do: the listing, its audio and duration, then all settings."""
    from corpus_asr.config.load import load_config, settings_of
    from corpus_asr.runtime.estimate import estimate_audio, survey
    from corpus_asr.runtime.speeds import Machine, measured_machines, stated_machine
    from corpus_asr.storage.run_state.tables import OutputStore

    with readable_errors():
        settings = load_config(config, overrides or ())
        note_model_of(settings)
        machines = [] if speed is None else [stated_machine(settings, speed)]
        store = OutputStore.of(settings.output)
        with _drawn(settings, store, redo=redo) as (run_plan, target):
            headers = survey(run_plan.unknown(), settings)
            audio = estimate_audio(run_plan.remaining.strata, run_plan.known, headers.sums)
            machines += measured_machines(settings, store)
            lines = list(_counts(run_plan, store.uri))
            if check:
                from corpus_asr.pipelines.driver import prepare
                from corpus_asr.runtime.preflight import ReadyCheck

                prepare(settings)
                ready = ReadyCheck(settings, store, run_plan, target)
                checked = [*ready.lines(), "ready"]
                if ready.rtfx is not None:
                    machines.append(Machine(name="this machine", rtfx=ready.rtfx))
            else:
                checked = []
        if as_json:
            data = _data(run_plan, headers, audio, machines, checked, settings)
            typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
            return
        lines += [_audio_words(run_plan, headers, audio), *headers.track_words()]
        lines += _duration_words(run_plan, audio, machines)
        lines += checked
        for line in lines:
            typer.echo(f"# {line}")
        typer.echo("")
        _print_settings(list(settings_of(settings)))


@contextmanager
def _drawn(
    settings: "RunConfig", store: "OutputStore", *, redo: str | None
) -> "Iterator[tuple[Plan, OutputStore]]":
    """Give a plan that nobody will work off, and the folder that it is written into."""
    from corpus_asr.config.run import RunOptions
    from corpus_asr.runtime.checkpoints import fetch_checkpoints
    from corpus_asr.stages.inspection import IsolatedInspection
    from corpus_asr.storage.listing import check_output_apart
    from corpus_asr.storage.run_state.plan import make_plan
    from corpus_asr.storage.run_state.tables import OutputStore

    check_output_apart(settings.source, settings.output.uri)
    # Weights are large, and matter where results of the same ones may lie.
    started = bool(store.commit_names())
    checkpoint = fetch_checkpoints(settings, hashed=started)
    revision = checkpoint.fingerprint if started else None
    # Not into the output: others read it meanwhile, and take the newest plan for the last run's.
    with scratch_folder() as folder:
        target = OutputStore(str(folder))
        with closing(IsolatedInspection(timeout_s=settings.extract.item_timeout_s)) as inspect:
            plan = make_plan(
                settings, store, model_revision=revision, options=RunOptions(redo=redo),
                target=target, inspect=inspect,
            )  # fmt: skip
        yield plan, target


def _counts(found: "Plan", output_uri: str) -> Iterator[str]:
    from corpus_asr.units import counted

    unknown = f", {found.num_unknown_sizes:,} of unknown size" if found.num_unknown_sizes else ""
    yield f"listed     {counted(found.num_files, 'file')}, {_size(found.num_bytes)}{unknown}"
    yield f"skipped    {', '.join(words for _, words, _ in found.skipped())}"
    yield from (f"warning    {words}" for words in found.warnings())
    if found.num_forgotten:
        yield f"forgotten  {counted(found.num_forgotten, 'file')}, by corpus-asr remove"
    for uri in found.empty:
        yield f"empty      {uri}"
    if found.num_moved:
        yield f"moved      {counted(found.num_moved, 'file')}; done under other URIs"
        yield from (f"{'':11}{line}" for line in first_lines([*map(str, found.moves.values())]))
    if found.source_change:
        yield f"source     {found.source_words()}"
    yield f"done       {counted(found.num_done, 'file')}, in {output_uri}"
    if found.num_matched is not None:
        yield f"redo       {found.redo_words()}"
    if found.num_realigned:
        yield f"manifest   {counted(found.num_realigned, 'other text')} to be aligned"
    batches = "1 task batch" if found.num_packs == 1 else f"{found.num_packs:,} task batches"
    yield (
        f"to do      {counted(found.num_remaining, 'file')}, {_size(found.num_remaining_bytes)}, "
        f"in {batches}"
    )


def _audio_words(found: "Plan", headers: "Survey", audio: "Estimate | None") -> str:
    from corpus_asr.units import counted

    reasons = [
        (headers.without_duration, "without a duration"),
        *((count, kind) for kind, count in headers.failures.items()),
    ]
    words = "".join(f"; {count:,} {reason}" for count, reason in reasons if count)
    of = f"of {counted(found.num_remaining, 'recording')}"
    if not found.num_remaining:
        return "audio      none to do"
    if audio is None:
        return f"audio      unknown: no header {of} has a duration{words}"
    done = sum(sums.files for sums in found.known.values())
    by = [f"{done:,} known from before"] if done else []
    if headers.asked or not done:
        by.append(f"by {counted(headers.read, 'header')}")
    return f"audio      {audio.hours_words()}, {' and '.join(by)} {of}{words}"


def _duration_words(
    found: "Plan", audio: "Estimate | None", machines: Sequence["Machine"]
) -> Iterator[str]:
    if not found.num_remaining:
        return
    if audio is None or not machines:
        reason = "the length of the audio is" if audio is None else "no run here measured the speed"
        yield f"takes      unknown: {reason}; --check measures it here, --speed RTFX states it"
        return
    label = "takes"
    for machine in machines:
        yield (
            f"{label:<11}{machine.duration_s(audio).clock_words()} at {machine.speed_words()}: "
            f"{machine.name}"
        )
        label = ""


def _data(
    found: "Plan",
    headers: "Survey",
    audio: "Estimate | None",
    machines: Sequence["Machine"],
    checked: list[str],
    settings: "RunConfig",
) -> dict[str, Any]:
    from dataclasses import asdict

    from corpus_asr.report.text import rounded
    from corpus_asr.storage.run_state.run_files import safe_config
    from corpus_asr.storage.stores.uri import redact_uri

    data: dict[str, Any] = rounded(
        {
            "plan": {
                name: value
                for name, value in found.as_data().items()
                if name not in ("uri", "name")
            }
            | {"moves": {move.old_uri: move.uri for move in found.moves.values()}},
            "audio_s": audio and asdict(audio),
            "headers": {
                "asked": headers.asked,
                "read": headers.read,
                "without_duration": headers.without_duration,
                "failures": headers.failures,
                "tracks": {redact_uri(uri): named for uri, named in headers.tracks.items()},
            },
            "outlooks": [
                {"machine": asdict(machine), "duration_s": asdict(machine.duration_s(audio))}
                for machine in machines
                if audio is not None
            ],
            "checked": checked,
            "settings": safe_config(settings),
        }
    )
    return data


def _print_settings(settings: "list[Setting]") -> None:
    from corpus_asr.config.load import yaml_value

    section = ""
    for setting in settings:
        above, _, name = setting.key.rpartition(".")
        if above not in ("", section):
            typer.echo(f"{above}:")
        section = above
        line = f"{'  ' if above else ''}{name}: {yaml_value(setting.value)}"
        if setting.is_default:
            line = typer.style(f"{line}  # default", dim=True)
        typer.echo(line)


def _size(num_bytes: int) -> str:
    if num_bytes < 1_000_000:
        return f"{num_bytes / 1e3:,.1f} kB"
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"
