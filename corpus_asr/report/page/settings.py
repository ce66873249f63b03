"""The end of a page: how to read the tables, the settings and the versions of a run."""

from collections.abc import Iterator
from typing import Any

from corpus_asr.config.secrets import hide_secrets
from corpus_asr.pages.html import Html, fill
from corpus_asr.report.page.data import PageData
from corpus_asr.report.page.shown import cut
from corpus_asr.report.status import FINISHED
from corpus_asr.storage.stores.uri import without_secrets

_MOST_SETTINGS = 400
_READING = """<section aria-labelledby="reading"><h2 id="reading">How to read the tables</h2>
<p>Plain Parquet: <code>$table/</code>, <code>outcomes/</code>, one row per part with its status, \
and <code>recordings/</code>, one row per file, once a run has finished.$unfinished</p>
<pre><code>$python</code></pre>
<pre><code>$sql</code></pre></section>"""
_PYTHON = """import pandas as pd

{table} = pd.read_parquet({folder!r}){rows}
unsure = {table}.nsmallest(10, "{sure}")
print(unsure[["{what}", "{sure}", "start_s", "uri"]].to_string())"""
_SQL = """-- DuckDB
SELECT {what}, count(*) AS {table}, round(sum(end_s - start_s) / 3600, 2) AS hours
FROM read_parquet('{files}')
{where}GROUP BY ALL ORDER BY hours DESC;"""
_SETTINGS = """<section aria-labelledby="settings"><h2 id="settings">Settings</h2>
<details><summary>$count, secrets left out</summary><div class="scrolls"><table>
<thead><tr><th scope="col">key</th><th scope="col">value</th></tr></thead>
<tbody>$rows</tbody></table></div></details>$versions</section>"""


def reading(data: PageData) -> Html:
    """Return how to open the tables with other programs."""
    uri = data.report.uri
    table, what, sure = "segments", "text", "confidence"
    group, where, rows = "language", "", ""
    if data.classifies:
        table, what, sure, group = "labels", "label", "probability", "label"
        where, rows = "WHERE rank = 1\n", ".query('rank == 1')"
    folder = f"{uri}/{table}"
    files = f"{folder}/*.parquet".replace("'", "''")
    unfinished = (
        ""
        if data.state == FINISHED
        else " Until then a part may be in them twice, after a crash or a retry."
    )
    return fill(
        _READING,
        table=table,
        unfinished=unfinished,
        python=_PYTHON.format(table=table, folder=folder, rows=rows, what=what, sure=sure),
        sql=_SQL.format(what=group, table=table, files=files, where=where),
    )


def settings(data: PageData) -> Html:
    """Return every setting of the run, and the versions of what it ran with."""
    rows = list(_flat(data.config))
    versions = data.run.get("versions") or {}
    return fill(
        _SETTINGS,
        count=f"{len(rows):,} settings",
        rows=[
            fill(
                '<tr><th scope="row"><code>$key</code></th><td>$value</td></tr>',
                key=cut(key),
                value=_value(value),
            )
            for key, value in rows[:_MOST_SETTINGS]
        ],
        versions=fill(
            '<p class="small quiet">$versions</p>',
            versions=" · ".join(f"{name} {version}" for name, version in versions.items()),
        ),
    )


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, dict) and value:
            yield from _flat(value, key)
        else:
            yield key, value


def _value(value: Any) -> Html | str:
    if value is None:
        return Html('<span class="quiet">none</span>')
    if isinstance(value, bool):
        return "yes" if value else "no"
    return cut(hide_secrets(without_secrets(str(value))), 300)
