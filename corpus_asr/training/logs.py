"""Trackers of a training: TensorBoard, MLflow and Weights & Biases, each through its own client.

In go numbers by step and the settings, once. A resumed training continues the run of each tracker:
its ID is in the output folder, and steps that a tracker has are not logged again. Packages are
imported only for the trackers that are named.
"""

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from corpus_asr.config.document import hide_secrets
from corpus_asr.config.finetune import FinetuneConfig, TrackerName
from corpus_asr.errors import ConfigError, install_words
from corpus_asr.logs import event
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import LOCAL, redact_uri, scheme_of

_LOG = logging.getLogger(__name__)

TRACKERS_NAME = "trackers.json"
"""IDs of the trackers' runs, in the output folder."""
_FOLDER = "tensorboard"
_LOSS = "train/loss"
_NAMES = {
    "loss": _LOSS, "lr": "train/lr", "grad_norm": "train/grad_norm", "wer": "validation/wer",
    "cer": "validation/cer", "hallucinated_words": "validation/hallucinated_words",
}  # fmt: skip


class Tracker(Protocol):
    """Where a training is followed."""

    run_id: str
    last_step: int
    """The last one that it has; -1 for none."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is not written yet."""


class _TensorBoard:
    def __init__(self, store: OutputStore, run_id: str | None, done: int, settings: Any) -> None:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        folder = store.address(_FOLDER)
        # What a killed training wrote after its last checkpoint is hidden, and written again.
        self._writer = tensorboard.SummaryWriter(folder, purge_step=done + 1 if done else 0)
        self.run_id, self.last_step = _FOLDER, done if run_id else -1
        if not run_id:
            rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Mlflow:
    def __init__(self, store: OutputStore, run_id: str | None, done: int, settings: Any) -> None:
        self._mlflow = mlflow = importlib.import_module("mlflow")
        name = redact_uri(store.uri).rstrip("/").rpartition("/")[2]
        self.run_id = mlflow.start_run(run_id=run_id, run_name=name).info.run_id
        self.last_step = -1
        if run_id:
            history = mlflow.MlflowClient().get_metric_history(run_id, _LOSS)
            self.last_step = max((each.step for each in history), default=done)
        else:
            mlflow.log_params(settings)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _Wandb:
    def __init__(self, store: OutputStore, run_id: str | None, done: int, settings: Any) -> None:
        wandb = importlib.import_module("wandb")
        name = redact_uri(store.uri).rstrip("/").rpartition("/")[2]
        self._run = wandb.init(
            id=run_id, name=name, config=dict(settings), resume="allow" if run_id else None
        )
        self.run_id = self._run.id
        # Where it is offline, nobody knows what the run had: as much as the checkpoint.
        self.last_step = max(done, self._run.step - 1) if run_id else -1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


# The package of each, and what opens it.
_TRACKERS: Mapping[TrackerName, tuple[str, Callable[..., Tracker]]] = {
    "tensorboard": ("tensorboard", _TensorBoard),
    "mlflow": ("mlflow", _Mlflow),
    "wandb": ("wandb", _Wandb),
}


def check_trackers(config: FinetuneConfig) -> None:
    """See that the trackers of a training can be used, before anything is prepared.

    Raises:
        ConfigError: a package is missing, or TensorBoard's files would not be on this machine.
    """
    for name in config.output.log_to:
        package, _ = _TRACKERS[name]
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"logging a training to {name}: {package} cannot be imported ({error}), expected "
                f"the package; {install_words(name)}, or leave {name} out of "
                "output.log_to"
            ) from error
    uri = config.output.uri
    if "tensorboard" in config.output.log_to and scheme_of(uri) != LOCAL:
        raise ConfigError(
            f"logging a training to tensorboard: found output.uri {redact_uri(uri)}, expected a "
            "local folder, since TensorBoard appends to its files; log to mlflow or wandb instead"
        )


class TrainingLogs:
    """All trackers of a training.

    Args:
        config: the training.
        store: its output folder.
        done: steps of its last checkpoint; 0 begins new runs.

    Raises:
        ConfigError: a tracker cannot begin; one that cannot continue is left out.
    """

    def __init__(self, config: FinetuneConfig, store: OutputStore, *, done: int) -> None:
        settings = _flat(config.model_dump(mode="json"))
        known = (store.read_json(TRACKERS_NAME) or {}) if done else {}
        self._trackers: dict[str, Tracker] = {}
        for name in config.output.log_to:
            try:
                self._trackers[name] = _TRACKERS[name][1](store, known.get(name), done, settings)
            except Exception as error:  # of any client
                _note_failed(name, error)
                if not done:
                    self.close()
                    raise ConfigError(
                        f"logging a training to {name}: {_said(error)}; see that its server can be "
                        f"reached, or leave {name} out of output.log_to"
                    ) from None
        if self._trackers:
            ids = {name: each.run_id for name, each in self._trackers.items()}
            store.write_json(TRACKERS_NAME, {**known, **ids})

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the rows of one step: what it did, and its evaluation if there was one."""
        values = {
            name: float(row[key])
            for row in rows
            for key, name in _NAMES.items()
            if row.get(key) is not None
        }
        for row in rows:
            if row.get("wall_s"):
                values["train/tokens_per_s"] = row["tokens"] / row["wall_s"]
        step = int(rows[0]["step"])
        for name, tracker in list(self._trackers.items()):
            if step > tracker.last_step:
                self._try(name, tracker.log, step, values)

    def close(self) -> None:
        """Write what is not written yet."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.close)

    def _try(self, name: str, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # of any client: days of training must not end with its server
            del self._trackers[name]
            _note_failed(name, error)


def _note_failed(name: str, error: Exception) -> None:
    event(_LOG, logging.WARNING, "tracker_failed", tracker=name, why=_said(error))


def _said(error: Exception) -> str:
    return hide_secrets(f"{type(error).__name__}: {error}")


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{key}.")
        else:
            found[key] = hide_secrets(str(value))
    return found
