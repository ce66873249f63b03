"""Boards, monitors and examples for other tools name metrics, commands and codes that exist."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import ray
import typer.main
import yaml

from corpus_asr.cli import failures
from corpus_asr.cli import main as cli
from corpus_asr.report.nightly import as_data
from tests.support.nightly import night

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "configs" / "cluster"
EXAMPLES = REPOSITORY / "configs" / "orchestration"


# Grafana and Prometheus.


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(CLUSTER / "grafana_board.py"))


def test_the_board_is_that_of_the_metrics(generator: dict[str, Any]) -> None:
    text = (CLUSTER / "grafana.json").read_text()
    assert text == generator["written"](), "run configs/cluster/grafana_board.py"
    board = json.loads(text)
    lines = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {
        name.removesuffix("_bucket") for line in lines for name in generator["SHOWN"].findall(line)
    }
    assert named == set(generator["NAMES"])
    variables = [each["name"] for each in board["templating"]["list"]]
    for line in lines:
        assert line.count("(") == line.count(")")
        assert '{ray_io_cluster=~"$cluster"}' in line
    assert variables == ["datasource", "cluster"]
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert [panel["id"] for panel in board["panels"]] == list(range(1, len(places) + 1))


def test_a_new_metric_gets_a_panel_by_its_kind(generator: dict[str, Any]) -> None:
    coordinator = sys.modules["corpus_asr.runtime.coordinator"]
    new = coordinator.__dict__["Metric"]("new_total", "new", "something new")
    space = generator["board"].__globals__
    before = space["COUNTERS"]
    space["COUNTERS"] = (*before, new)
    try:
        last = space["board"]()["panels"][-1]
    finally:
        space["COUNTERS"] = before
    assert (last["title"], last["description"]) == ("new_total", "something new")
    assert last["targets"][0]["expr"].startswith("sum(rate(ray_corpus_asr_new_total{")


# Of a PodMonitor's fields those that are used here; the operator refuses others.
ENDPOINT = {"port", "interval", "relabelings"}
RELABELING = {"sourceLabels", "targetLabel", "action", "regex", "replacement", "separator"}


def test_the_monitor_selects_the_pods_of_kuberay() -> None:
    (found,) = yaml.safe_load_all((CLUSTER / "monitoring.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(found["spec"]) == {"selector", "podMetricsEndpoints"}
    assert found["spec"]["selector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    (endpoint,) = found["spec"]["podMetricsEndpoints"]
    assert set(endpoint) <= ENDPOINT
    assert endpoint["port"] == "metrics"
    targets = []
    for relabeling in endpoint["relabelings"]:
        assert set(relabeling) <= RELABELING
        (source,) = relabeling["sourceLabels"]
        assert source == f"__meta_kubernetes_pod_label_{relabeling['targetLabel']}"
        targets.append(relabeling["targetLabel"])
    assert targets[0] == "ray_io_cluster"  # by which the board chooses
    # A container that lists ports of its own must list this one, too.
    for path in CLUSTER.glob("*.yaml"):
        assert "containerPort" not in path.read_text(), path


# What Ray itself exports, and is used here; its names are those of Ray's own board.
OF_RAY = {"ray_object_store_memory", "ray_node_disk_utilization_percentage", "ray_node_cpu_count"}


def test_alerts_name_metrics_that_are_exported_and_say_of_which_cluster(
    generator: dict[str, Any],
) -> None:
    (found,) = yaml.safe_load_all((CLUSTER / "alerts.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == (
        "monitoring.coreos.com/v1",
        "PrometheusRule",
    )
    (group,) = found["spec"]["groups"]
    guide = (REPOSITORY / "docs" / "watching.md").read_text()
    exported = {f"ray_corpus_asr_{name}" for name in generator["NAMES"]} | OF_RAY
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(re.findall(r"\bray_(?!io_)\w+", rule["expr"])) <= exported, rule["alert"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.search(r"by \(ray_io_cluster\b", rule["expr"])
        assert rule["annotations"]["summary"].startswith("{{ $labels.ray_io_cluster }}")
        assert f"| `{rule['alert']}` |" in guide
    modules = Path(ray.__file__).parent / "dashboard" / "modules"
    sources = [*modules.glob("metrics/dashboards/*.py"), modules / "reporter/reporter_agent.py"]
    shown = "".join(path.read_text() for path in sources)
    assert [name for name in OF_RAY if name.removeprefix("ray_") not in shown] == []


# Airflow and Dagster, of which only what the examples use is imitated.


def check_command(words: list[str]) -> None:
    """Let the command's own parser read a command of an example."""
    assert words[0] == "corpus-asr"
    group: Any = typer.main.get_command(cli.app)
    group.commands[words[1]].make_context(words[1], words[2:])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules of Airflow and Dagster that note what they are called with."""
    made = SimpleNamespace(dag={}, tasks=[], schedules=[], policies=[])

    def module(name: str, **contents: Any) -> None:
        found = ModuleType(name)
        found.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, found)

    class Dag:
        def __init__(self, **settings: Any) -> None:
            made.dag |= settings

        def __enter__(self) -> "Dag":
            return self

        def __exit__(self, *_: object) -> None: ...

    class FailureError(Exception):
        def __init__(self, description: str, *, allow_retries: bool) -> None:
            super().__init__(description)
            self.allow_retries = allow_retries

    def asset(*, retry_policy: Any) -> Any:
        made.policies.append(retry_policy)
        return lambda function: function

    for name in ("airflow", "airflow.providers", "airflow.providers.standard",
                 "airflow.providers.standard.operators"):  # fmt: skip
        module(name)

    class AirflowError(Exception): ...

    class FinalError(AirflowError): ...

    class BashOperator:
        """As of the standard provider, which skips by an exception of the same kind."""

        def __init__(self, **settings: Any) -> None:
            made.tasks.append(self)
            self.settings = settings
            self.subprocess_hook = SimpleNamespace(sub_process=None)

        def execute(self, context: object) -> object:
            process = subprocess.Popen(["bash", "-c", self.settings["bash_command"]])
            process.wait()
            self.subprocess_hook.sub_process = process
            if process.returncode:
                raise AirflowError(f"a non-zero exit code {process.returncode}.")
            return context

    made.final = FinalError
    module("airflow.sdk", DAG=Dag)
    module("airflow.exceptions", AirflowException=AirflowError, AirflowFailException=FinalError)
    module("airflow.providers.standard.operators.bash", BashOperator=BashOperator)
    module(
        "dagster",
        AssetExecutionContext=object,
        DefaultScheduleStatus=SimpleNamespace(RUNNING="running"),
        Definitions=SimpleNamespace,
        Failure=FailureError,
        MaterializeResult=SimpleNamespace,
        RetryPolicy=SimpleNamespace,
        ScheduleDefinition=lambda **settings: made.schedules.append(settings),
        asset=asset,
    )
    return made


@pytest.mark.parametrize(
    ("code", "final"),
    [
        (0, None),
        (failures.EXIT_LOCKED, False),
        (failures.EXIT_SOME_FAILED, True),
        (failures.EXIT_UNUSABLE, True),
        (failures.EXIT_STOPPED_BY_FAILURE, False),
    ],
)
def test_airflow_calls_the_command_and_knows_its_codes(
    code: int,
    final: bool | None,
    stand_in: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = tmp_path / "corpus-asr"
    command.write_text(f"#!/bin/sh\nexit {code}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    runpy.run_path(str(EXAMPLES / "airflow_nightly.py"))
    (task,) = stand_in.tasks
    exec_, *words = shlex.split(task.settings["bash_command"])
    assert exec_ == "exec"  # signals reach the command, not a shell
    check_command(words)
    assert task.settings["skip_on_exit_code"] == failures.EXIT_LOCKED
    if final is None:
        assert task.execute("context") == "context"
    else:
        with pytest.raises(Exception, match=f"exit code {code}") as caught:
            task.execute("context")
        assert isinstance(caught.value, stand_in.final) is final
    assert stand_in.dag["max_active_runs"] == 1
    assert stand_in.dag["catchup"] is False


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, {"done": 10, "failed": 0, "remaining": 0, "audio_hours": 10.0, "rtfx": 10.0,
             "output": "s3://transcripts/podcasts"}),
        (failures.EXIT_LOCKED, {"skipped": True}),
        (failures.EXIT_SOME_FAILED, False),
        (failures.EXIT_UNUSABLE, False),
        (failures.EXIT_STOPPED_BY_FAILURE, True),
    ],
)  # fmt: skip
def test_dagster_shows_a_nights_numbers_and_tries_again_what_may_pass(
    code: int,
    outcome: object,
    stand_in: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed, asked = tmp_path / "night.json", tmp_path / "asked"
    printed.write_text(json.dumps(as_data(night())))
    command = tmp_path / "corpus-asr"
    command.write_text(f'#!/bin/sh\necho "$@" > {asked}\ncat {printed}\nexit {code}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    transcripts = runpy.run_path(str(EXAMPLES / "dagster_nightly.py"))["transcripts"]
    context = SimpleNamespace(log=SimpleNamespace(info=lambda words: None))
    if isinstance(outcome, dict):
        assert transcripts(context).metadata == outcome
    else:
        with pytest.raises(Exception, match=f"ended with {code}") as caught:
            transcripts(context)
        assert caught.value.allow_retries is outcome  # type: ignore[attr-defined]
    check_command(["corpus-asr", *asked.read_text().split()])
    assert [each["target"] for each in stand_in.schedules] == [transcripts]
