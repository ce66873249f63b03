"""Write `grafana.json`, a board of a run's metrics, from the table that the coordinator exports.

    python configs/cluster/grafana_board.py

Grafana: Dashboards, New, Import. A metric without a panel of its own gets one by its kind, so that
none is missing.
"""

import json
import re
from pathlib import Path
from typing import Any

from corpus_asr.runtime.coordinator import (
    COMMIT_SECONDS,
    COUNTERS,
    GAUGES,
    OCCUPANCY,
    PREFIX,
    RECORDINGS,
)

BOARD = Path(__file__).with_name("grafana.json")
NAMES = [metric.name for metric in (*COUNTERS, *GAUGES, OCCUPANCY, RECORDINGS, COMMIT_SECONDS)]
SHOWN = re.compile(rf"ray_{PREFIX}(\w+)")
_HERE = '{ray_io_cluster=~"$cluster"}'
_WIDTH, _HEIGHT = 8, 8  # of 24 columns
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def value(name: str) -> str:
    """Return a metric's value, summed over processes."""
    return f"sum(ray_{PREFIX}{name}{_HERE})"


def rate(name: str, by: str = "") -> str:
    """Return a counter's growth per second."""
    return f"sum{by}(rate(ray_{PREFIX}{name}{_HERE}[$__rate_interval]))"


def part(name: str, of: str) -> str:
    """Return one counter's growth as a fraction of another's."""
    return f"{rate(name)} / {rate(of)}"


def quantile(share: float, name: str) -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', ' by (le) ')})"


_ALIVE = "engine_alive_seconds_total"
# Title, unit, what it means, and lines by their legends.
PANELS: list[tuple[str, str, str, dict[str, str]]] = [
    ("RTFx", "none", "Seconds of audio committed per second.",
     {"RTFx": rate("audio_seconds_total")}),
    ("Recordings", "short", "Recordings per minute that reached a final status.",
     {"{{status}}": f"60 * {rate('recordings_total', ' by (status) ')}"}),
    ("Audio so far", "h", "Hours of audio committed by the run.",
     {"audio": f"{value('audio_seconds_total')} / 3600"}),
    ("Engines", "percentunit", "Fractions of the time that engines were loaded.",
     {"encode": part("encode_seconds_total", _ALIVE), "decode": part("step_seconds_total", _ALIVE),
      "wait for results": part("engine_wait_seconds_total", _ALIVE)}),
    ("Slots in use", "percentunit", "Fraction of decoder slots in use.",
     {"slots": f"avg(ray_{PREFIX}slot_occupancy{_HERE})"}),
    ("Queues", "short", "Many parts ready: engines are the bottleneck. None: extraction is.",
     {"ready for an engine": value("parts_ready"), "in engines": value("parts_in_engines")}),
    ("Extraction", "none", "Workers at work, and blocked by backpressure.",
     {"extracting": rate("extract_seconds_total"), "of it CPU": rate("extract_cpu_seconds_total"),
      "blocked": rate("backpressure_seconds_total")}),
    ("Model", "short", "Windows encoded and tokens decoded per second.",
     {"windows": rate("windows_total"), "tokens": rate("tokens_total")}),
    ("Commits", "s", "Duration of commits.",
     {"median": quantile(0.5, "commit_seconds"), "95 %": quantile(0.95, "commit_seconds")}),
    ("Retried requests", "short", "Requests per minute that storage made to be repeated.",
     {"recordings": f"60 * {rate('fetch_retries_total')}",
      "commits": f"60 * {rate('commit_retries_total')}"}),
    ("Workers", "short", "Parts tried again after their worker died, and replaced workers.",
     {"parts retried": value("parts_retried_total"),
      "workers replaced": value("workers_replaced_total")}),
    ("Parts", "short", "Parts committed per minute.", {"parts": f"60 * {rate('parts_total')}"}),
]  # fmt: skip


def board() -> dict[str, Any]:
    """Return the board as Grafana imports it."""
    shown = {
        name.removesuffix("_bucket")
        for *_, lines in PANELS
        for line in lines.values()
        for name in SHOWN.findall(line)
    }
    others = [
        (metric.name, "short", metric.description, {metric.name: write(metric.name)})
        for write, metrics in ((rate, COUNTERS), (value, GAUGES))
        for metric in metrics
        if metric.name not in shown
    ]
    return {
        "uid": "corpus-asr",
        "title": "corpus-asr",
        "tags": ["corpus-asr", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource",
             "query": "prometheus"},
            {"name": "cluster", "label": "Cluster", "type": "query", "datasource": _SOURCE,
             "query": f"label_values(ray_{PREFIX}audio_seconds_total, ray_io_cluster)",
             # Without Kubernetes there is no such label: .* matches that, too.
             "includeAll": True, "allValue": ".*", "multi": True, "refresh": 2,
             "current": {"text": "All", "value": "$__all"}},
        ]},
        "panels": [_panel(at, *panel) for at, panel in enumerate([*PANELS, *others])],
    }  # fmt: skip


def _panel(at: int, title: str, unit: str, means: str, lines: dict[str, str]) -> dict[str, Any]:
    per_row = 24 // _WIDTH
    return {
        "id": at + 1,
        "type": "timeseries",
        "title": title,
        "description": means,
        "datasource": _SOURCE,
        "gridPos": {
            "x": at % per_row * _WIDTH, "y": at // per_row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "legendFormat": legend,
             "expr": expression}
            for number, (legend, expression) in enumerate(lines.items())
        ],
    }  # fmt: skip


def written() -> str:
    """Return the text of the file."""
    return json.dumps(board(), indent=2) + "\n"


if __name__ == "__main__":
    BOARD.write_text(written())
