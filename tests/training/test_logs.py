"""Trackers get each step once, also of a training that was killed, and are checked before it."""

import importlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.training import logs as logs_module
from corpus_asr.training.job import Finetune
from corpus_asr.training.logs import TrainingLogs, check_trackers
from corpus_asr.training.trainer import Group, Record
from tests.support.training import tiny_student, training, write_sets

TRACKERS = ("tensorboard", "mlflow", "wandb")
STEPS: list[list[dict[str, Any]]] = [
    [{"step": 0, "wer": 0.5, "cer": 0.25, "hallucinated_words": 2, "examples": []}],
    [{"step": 1, "loss": 3.0, "lr": 1e-3, "grad_norm": 2.0, "tokens": 30, "wall_s": 2.0}],
    [
        {"step": 2, "loss": 1.0, "lr": 1e-4, "grad_norm": 1.0, "tokens": 30, "wall_s": 3.0},
        {"step": 2, "wer": 0.25, "cer": None, "hallucinated_words": 0, "examples": []},
    ],
]
EXPECTED = {
    "train/loss": [(1, 3.0), (2, 1.0)],
    "train/tokens_per_s": [(1, 15.0), (2, 10.0)],
    "validation/wer": [(0, 0.5), (2, 0.25)],
}


class Server:
    """What the clients of all trackers keep, by run."""

    def __init__(self) -> None:
        self.settings: list[Mapping[str, str]] = []
        self.steps: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
        self.down = False

    def begin(self, run_id: str | None = None, **_: Any) -> str:
        if self.down:
            raise ConnectionError("https://me:secret@tracker is down")
        run_id = run_id or f"run-{len(self.steps)}"
        self.steps.setdefault(run_id, [])
        return run_id

    def log(self, run_id: str, values: Mapping[str, float], step: int) -> None:
        if self.down:
            raise ConnectionError("https://me:secret@tracker is down")
        self.steps[run_id].append((step, values))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Stand-ins for the packages: the calls are those of `test_the_real_trackers_agree`."""
    kept = Server()

    def start_run(run_id: str | None = None, run_name: str | None = None) -> Any:
        active.append(kept.begin(run_id))
        return SimpleNamespace(info=SimpleNamespace(run_id=active[-1]))

    def history(run_id: str, key: str) -> list[Any]:
        return [SimpleNamespace(step=step) for step, values in kept.steps[run_id] if key in values]

    def init(id: str | None, name: str, config: Mapping[str, str], resume: str | None) -> Any:
        run_id = kept.begin(id)
        if id is None:
            kept.settings.append(config)
        at = max((step + 1 for step, _ in kept.steps[run_id]), default=0)
        return SimpleNamespace(
            id=run_id, step=at, finish=lambda: None,
            log=lambda values, step: kept.log(run_id, values, step),
        )  # fmt: skip

    active: list[str] = []
    contents: dict[str, dict[str, Any]] = {
        "mlflow": {
            "start_run": start_run, "log_params": kept.settings.append, "end_run": active.clear,
            "log_metrics": lambda values, step: kept.log(active[-1], values, step),
            "MlflowClient": lambda: SimpleNamespace(get_metric_history=history),
        },
        "wandb": {"init": init},
    }  # fmt: skip
    modules = {name: SimpleNamespace(**values) for name, values in contents.items()}
    # In its own module alone: other libraries look for these packages, too.
    found = SimpleNamespace(import_module=modules.__getitem__)
    monkeypatch.setattr(logs_module, "importlib", found)
    return kept


def config_of(folder: Path, *trackers: str, uri: str | None = None) -> FinetuneConfig:
    output = {"log_to": trackers} | ({} if uri is None else {"uri": uri})
    config = training(folder, folder / "model")
    return config.model_copy(update={"output": config.output.model_copy(update=output)})


def curves(server: Server) -> dict[str, list[tuple[int, float]]]:
    [steps] = server.steps.values()
    return {
        name: [(step, values[name]) for step, values in steps if name in values]
        for name in EXPECTED
    }


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_resumed_training_goes_on_in_its_run(
    server: Server, tracker: str, tmp_path: Path
) -> None:
    config, store = config_of(tmp_path, tracker), OutputStore(str(tmp_path / "out"))
    begun = TrainingLogs(config, store, done=0)
    for rows in STEPS:
        begun.log(rows)
    begun.close()
    # Killed after its step 2, with the checkpoint of step 1.
    resumed = TrainingLogs(config, store, done=1)
    resumed.log(STEPS[2])
    resumed.log([{"step": 3, "loss": 0.5}])
    [steps] = server.steps.values()
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert {name: values[:2] for name, values in curves(server).items()} == EXPECTED
    [settings] = server.settings
    assert settings["training.max_steps"] == "4"
    # From its start it is another one.
    TrainingLogs(config, store, done=0)
    assert len(server.steps) == 2


@pytest.mark.long
def test_a_killed_training_is_logged_once(server: Server, tmp_path: Path) -> None:
    write_sets(tmp_path)
    tiny_student(tmp_path)
    config = config_of(tmp_path, "mlflow")
    for stop_after in (3, None):
        for found in Finetune(config, group=Group()).run():
            if isinstance(found, Record) and found.step == stop_after:
                break
    [steps] = server.steps.values()
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    assert set(steps[0][1]) == {"train/loss", "train/lr", "train/grad_norm", "train/tokens_per_s"}


def test_a_tracker_that_is_down_ends_no_training(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, "mlflow", "wandb")
    logs = TrainingLogs(config, OutputStore(str(tmp_path / "out")), done=0)
    server.down = True
    with caplog.at_level(logging.WARNING):
        for rows in STEPS:
            logs.log(rows)
    assert [each.__dict__["fields"]["tracker"] for each in caplog.records] == ["mlflow", "wandb"]
    assert "secret" not in str(caplog.records[0].__dict__)
    # It goes on without those that are down, but does not begin without them.
    TrainingLogs(config, OutputStore(str(tmp_path / "out")), done=1)
    with pytest.raises(ConfigError, match="logging a training to mlflow: ConnectionError") as found:
        TrainingLogs(config, OutputStore(str(tmp_path / "out")), done=0)
    assert "secret" not in str(found.value)


def test_trackers_are_checked_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=rf"pip install {name} \(extra {name}\)"):
            # There is neither a checkpoint nor data.
            Finetune(config_of(tmp_path, name), group=Group())
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    with pytest.raises(ConfigError, match=r"expected a local folder.*mlflow or wandb"):
        check_trackers(config_of(tmp_path, "tensorboard", uri="s3://models/out"))
    check_trackers(config_of(tmp_path))


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder / "out" / "tensorboard"))
    events.Reload()
    assert events.Tags()["tensors"] == ["settings/text_summary"]
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in EXPECTED}


def read_mlflow(_: Path) -> dict[str, list[tuple[int, float]]]:
    mlflow = importlib.import_module("mlflow")
    [run] = mlflow.search_runs(output_format="list")
    assert run.data.params["training.max_steps"] == "4"
    history = mlflow.MlflowClient().get_metric_history
    return {
        name: [(each.step, each.value) for each in history(run.info.run_id, name)]
        for name in EXPECTED
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_real_trackers_agree(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(tracker)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, store = config_of(tmp_path, tracker), OutputStore(str(tmp_path / "out"))
    check_trackers(config)
    begun = TrainingLogs(config, store, done=0)
    for rows in STEPS:
        begun.log(rows)
    begun.close()
    resumed = TrainingLogs(config, store, done=1)
    resumed.log(STEPS[2])
    resumed.close()
    read = {"tensorboard": read_tensorboard, "mlflow": read_mlflow}.get(tracker)
    if read is not None:  # what W&B writes offline has no reader but its server
        assert read(tmp_path) == EXPECTED
    else:
        assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
