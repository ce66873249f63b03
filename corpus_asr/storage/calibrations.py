"""Calibrations of `confidence`: a JSON file in a run's output folder.

In: the address of an output folder or of a `calibration.json`. Out: a `ConfidenceModel`. Knows
nothing of how one is fitted, and nothing of tables.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from corpus_asr.confidence import FEATURES, ConfidenceModel
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.logs import event
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import shown

CALIBRATION_NAME: Final = "calibration.json"
_LOG = logging.getLogger(__name__)


def write_calibration(
    store: OutputStore, model: ConfidenceModel, *, fitted: Mapping[str, Any]
) -> str:
    """Write a calibration into a run's output folder; later runs there use it.

    Args:
        store: the output folder.
        model: the calibration.
        fitted: what it was fitted to, when, and its figures; for people.

    Returns:
        Its address.

    Raises:
        FetchError: the store failed beyond its retries.
    """
    weights = dict(zip(FEATURES, model.weights, strict=True))
    store.write_json(
        CALIBRATION_NAME,
        {
            "name": model.name,
            "model_revision": model.model_revision,
            "offset": model.offset,
            "weights": weights,
            "fitted": dict(fitted),
        },
    )
    return store.address(CALIBRATION_NAME)


def read_calibration(address: str, *, endpoint_url: str | None = None) -> ConfidenceModel:
    """Return the calibration at an address.

    Args:
        address: a run's output folder, or a .json file.
        endpoint_url: the S3 endpoint, where it is not Amazon's.

    Raises:
        ConfigError: there is none, or it is of another program or version.
        CorpusAsrError: it is no JSON.
        FetchError: the store failed beyond its retries.
    """
    folder, _, name = address.rpartition("/")
    if not name.endswith(".json"):
        folder, name = address, CALIBRATION_NAME
    store = OutputStore(folder or ".", endpoint_url=endpoint_url)
    found = store.read_json(name)
    if found is None:
        raise ConfigError(
            f"reading the calibration {shown(store.address(name))}: found no such file; write it "
            "with `corpus-asr evaluate OUTPUT_URI --references MANIFEST --calibrate`, or correct "
            "model.calibration"
        )
    try:
        if set(found["weights"]) != set(FEATURES):
            raise ValueError(f"weights of {', '.join(found['weights'])}")
        return ConfidenceModel(
            name=str(found["name"]),
            offset=float(found["offset"]),
            weights=tuple(float(found["weights"][name]) for name in FEATURES),
            model_revision=found["model_revision"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reading the calibration {shown(store.address(name))}: found {error!r}, expected "
            f"name, model_revision, offset and weights of {', '.join(FEATURES)}; calibrate again "
            "with `corpus-asr evaluate --calibrate`"
        ) from error


def calibration_for(
    config: RunConfig, store: OutputStore, *, model_revision: str
) -> ConfidenceModel | None:
    """Return the calibration of a job: the one that it names, else that of its output folder.

    One that was fitted for other weights is used, with a warning in the log.

    Args:
        config: the job.
        store: its output folder.
        model_revision: of `model.checkpoint`.

    Returns:
        It, for the weights of `model.checkpoint`; None where there is none.

    Raises:
        ConfigError: the one that the job names does not exist or cannot be used.
        FetchError: the store failed beyond its retries.
    """
    address = config.model.calibration
    if address is None and not store.exists(CALIBRATION_NAME):
        return None
    found = read_calibration(address or store.uri, endpoint_url=store.endpoint_url)
    if found.model_revision not in (None, model_revision):
        event(
            _LOG, logging.WARNING, "calibration_of_another_model", calibration=found.name,
            fitted_for=found.model_revision, used_for=model_revision,
        )  # fmt: skip
    return found
