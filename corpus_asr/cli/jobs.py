"""`corpus-asr plan`, `nightly`, `label` and `finetune`: jobs of a configuration.

Imports nothing that `--help` would have to wait for.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli import completion
from corpus_asr.cli.failures import EXIT_LOCKED, EXIT_SOME_FAILED, readable_errors, say
from corpus_asr.cli.options import (
    AsJson,
    Config,
    Local,
    Overrides,
    StealLock,
    config_file,
    note_model_of,
    overrides_of,
    prepare_pipeline,
    print_result,
    progress_lines,
)
from corpus_asr.errors import LockedError
from corpus_asr.runtime.shutdown import ended_by_sigterm
from corpus_asr.threads import one_thread_for_arrays

if TYPE_CHECKING:
    from corpus_asr.config.load import Setting
    from corpus_asr.report.nightly import Night
    from corpus_asr.storage.run_state.plan import Plan


def plan(
    config: Config,
    overrides: Overrides = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Also decode a recording, load the model, reckon memory."),
    ] = False,
) -> None:
    """Show what a run would do: every setting, the listing, what is done already."""
    from corpus_asr.config.load import load_config, settings_of
    from corpus_asr.runtime.checkpoints import fetch_checkpoints
    from corpus_asr.storage.run_state.plan import make_plan
    from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore

    with readable_errors():
        settings = load_config(config, overrides or ())
        note_model_of(settings)
        _print_settings(list(settings_of(settings)))
        store = OutputStore.of(settings.output)
        # Weights are large; they matter here only where results of the same ones may lie.
        begun = bool(store.names(OUTCOMES_FOLDER))
        checkpoint = fetch_checkpoints(settings, hashed=begun)
        drawn = make_plan(settings, store, model_revision=checkpoint.fingerprint if begun else None)
        try:
            _print_plan(drawn, store.uri)
            if check:
                from corpus_asr.runtime.preflight import check_ready

                prepare_pipeline(settings)
                for line in check_ready(settings, store, drawn):
                    typer.echo(f"# {line}")
                typer.echo("# ready")
        finally:
            # Nobody will work it off, and a report takes the newest plan for that of the last run.
            for name in list(store.all_names(drawn.name)):
                store.remove(name)


def _print_settings(settings: "list[Setting]") -> None:
    from corpus_asr.config.load import yaml_value

    section = ""
    for setting in settings:
        above, _, name = setting.key.rpartition(".")
        if above != section:
            typer.echo(f"{above}:")
            section = above
        line = f"{'  ' if above else ''}{name}: {yaml_value(setting.value)}"
        if setting.is_default:
            line = typer.style(f"{line}  # default", dim=True)
        typer.echo(line)


def _print_plan(drawn: "Plan", output_uri: str) -> None:
    unknown = f", {drawn.num_unknown_sizes:,} of unknown size" if drawn.num_unknown_sizes else ""
    left_out = f"{drawn.num_excluded:,} excluded, {drawn.num_duplicates:,} named twice"
    typer.echo(f"\n# listed     {drawn.num_files:,} files, {_size(drawn.num_bytes)}{unknown}")
    typer.echo(f"# left out   {left_out}")
    typer.echo(f"# done       {drawn.num_done:,} files, in {output_uri}")
    typer.echo(
        f"# to do      {drawn.num_remaining:,} files, {_size(drawn.num_remaining_bytes)}, "
        f"in {drawn.num_packs:,} pack{'' if drawn.num_packs == 1 else 's'}"
    )


def _size(num_bytes: int) -> str:
    if num_bytes < 1_000_000:
        return f"{num_bytes / 1e3:,.1f} kB"
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"


def nightly(
    config: Annotated[str, config_file("such as configs/nightly.yaml")],
    overrides: Annotated[
        list[str] | None, overrides_of("Override a key, such as nightly.max_failed=9.")
    ] = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Run a job as every night: what is new, within its time and budget, with a summary."""
    from corpus_asr.config.load import load_config
    from corpus_asr.pipelines.nightly import run as run_night
    from corpus_asr.report.nightly import as_data, markdown

    def show(night: "Night") -> None:
        print_result(as_data(night), markdown(night).rstrip("\n"), as_json=as_json)

    with readable_errors(on_interrupt="the next night goes on"), ended_by_sigterm():
        settings = load_config(config, overrides or ())
        note_model_of(settings)
        try:
            night = run_night(settings, local=local, progress=progress_lines(), show=show)
        except LockedError as error:
            say(str(error))
            raise typer.Exit(EXIT_LOCKED) from None
        if night.over_budget is not None:
            say(f"{night.over_budget}; see corpus-asr report {night.output}")
            raise typer.Exit(EXIT_SOME_FAILED)


def label(
    config: Annotated[str, config_file("as configs/pseudo_label.yaml")],
    overrides: Annotated[
        list[str] | None, overrides_of("Override a key, as selection.min_confidence=0.8.")
    ] = None,
    steal_lock: StealLock = False,
    as_json: AsJson = False,
) -> None:
    """Select training data from what a run has transcribed, and write it; transcribes nothing."""
    from corpus_asr.config.load import load_config
    from corpus_asr.config.run import PSEUDO_LABEL, PseudoLabelConfig
    from corpus_asr.errors import ConfigError

    advice = "run the same command again to continue"
    with readable_errors(on_interrupt=advice), ended_by_sigterm():
        settings = load_config(config, overrides or ())
        if not isinstance(settings, PseudoLabelConfig):
            raise ConfigError(
                f"reading {config}: found pipeline: {settings.pipeline}, expected {PSEUDO_LABEL}; "
                "with the sections selection and dataset, as in configs/pseudo_label.yaml"
            )
        from corpus_asr.labelling.summary import as_data, render
        from corpus_asr.pipelines.pseudo_label import label as select_and_write

        found = select_and_write(settings, progress=progress_lines(), steal_lock=steal_lock)
        print_result(as_data(found), render(found), as_json=as_json)


def finetune(
    config: Annotated[str, config_file("such as configs/finetune.yaml")],
    overrides: Annotated[
        list[str] | None,
        overrides_of("Override a key: training.steps=300.", completion.training_override),
    ] = None,
) -> None:
    """Fine-tune a Whisper checkpoint on labelled audio, or resume a training that was stopped."""
    one_thread_for_arrays()
    with readable_errors(on_interrupt="run the same command again to resume"):
        from corpus_asr.config.load import load_finetune
        from corpus_asr.pipelines.finetune import run

        settings = load_finetune(config, overrides or ())
        done = run(settings, progress=progress_lines())
        for step, wer in done.error_rates:
            typer.echo(f"step {step:,}: wer {wer:.2%}")
        if done.kept_step == 0:
            typer.echo(
                f"{done.model_uri}: nothing was gained: the WER was lowest at step 0, so the "
                "starting checkpoint was kept"
            )
        else:
            typer.echo(f"{done.model_uri}: kept step {done.kept_step:,} of {done.steps:,}")
