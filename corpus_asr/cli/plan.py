"""`corpus-asr plan`: its options, and how a plan is shown.

In: the command line. Out: YAML that could be saved and run, and comments on what it comes to.
Imports nothing that `--help` would have to wait for.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli import completion
from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.model_option import note_model_of
from corpus_asr.cli.options import prepare_pipeline

if TYPE_CHECKING:
    from corpus_asr.config.load import Setting
    from corpus_asr.storage.run_state.plan import Plan


def plan(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file, such as configs/podcasts.yaml.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key, such as extract.part_s=300.",
            autocompletion=completion.override,
        ),
    ] = None,
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
        store = OutputStore(settings.output.uri, endpoint_url=settings.output.endpoint_url)
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
    """Print every value as YAML that could be saved and run, defaults marked as such."""
    from corpus_asr.config.template import yaml_value

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
