"""`corpus-asr label`: its options, and what it says when it is done.

In: the command line. Out: a data set, and its numbers as text or JSON. Imports nothing that
`--help` would have to wait for.
"""

import json
import sys
from typing import Annotated

import typer

from corpus_asr.cli import completion
from corpus_asr.cli.failures import readable_errors
from corpus_asr.logs import speaks_json
from corpus_asr.runtime.shutdown import ended_by_sigterm


def label(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, as configs/pseudo_label.yaml.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key, as selection.min_confidence=0.8.",
            autocompletion=completion.override,
        ),
    ] = None,
    steal_lock: Annotated[
        bool,
        typer.Option("--steal-lock", help="Take over a lock without a sign of life for 90 s."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Select training data from what a run has transcribed, and write it; transcribes nothing."""
    from corpus_asr.config.labelling import PseudoLabelConfig
    from corpus_asr.config.load import load_config
    from corpus_asr.config.run import PSEUDO_LABEL
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

        lines = None if speaks_json() else sys.stderr
        found = select_and_write(settings, progress=lines, steal_lock=steal_lock)
        data = json.dumps(as_data(found), indent=2, ensure_ascii=False)
        typer.echo(data if as_json else render(found))
