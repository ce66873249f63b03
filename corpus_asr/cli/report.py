"""`corpus-asr report`: what a run has done, as text, as JSON and as a page.

In: the command line. Out: text or JSON, `report.json` in the output folder, and a page where one is
asked for. Imports nothing that `--help` would have to wait for.
"""

import json
from typing import Annotated

import typer

from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.options import EndpointUrl, OutputUri


def report(
    output_uri: OutputUri,
    endpoint_url: EndpointUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    page: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write the run's page there: charts, samples."),
    ] = None,
) -> None:
    """Show what a run has done so far, what failed, and whether every file is accounted for."""
    from corpus_asr.report.html.page import write_page
    from corpus_asr.report.run import as_data, load_report, render
    from corpus_asr.storage.run_state.start import REPORT_NAME
    from corpus_asr.storage.run_state.tables import OutputStore

    with readable_errors():
        store = OutputStore(output_uri, endpoint_url=endpoint_url)
        found = load_report(store) if page is None else write_page(store, page)
        data = as_data(found)
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False) if as_json else render(found))
        store.write_json(REPORT_NAME, data)
