"""Fit `confidence` to an evaluated run: tables and references in, a `calibration.json` out.

Only the order of things is decided here; each is done elsewhere. Rows already written keep their
confidences; runs that come after it use the calibration.
"""

import datetime
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import EVIDENCE_COLUMNS, Selection, chosen, read_index, recordings
from corpus_asr.report.accuracy.calibration import (
    Calibration,
    SegmentOutcome,
    check_enough,
    cross_validated,
    fit,
    reliability,
    reliability_data,
    segment_outcomes,
)
from corpus_asr.report.accuracy.scoring import read_references
from corpus_asr.storage.run_state.run_files import write_calibration
from corpus_asr.storage.run_state.start import CONFIG_NAME, FINGERPRINT_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import public, redact_uri


def calibrate(
    output_uri: str,
    references: str,
    *,
    language: str | None = None,
    endpoint_url: str | None = None,
) -> Calibration:
    """Fit confidence to a run's segments, and write the calibration into its output folder.

    Args:
        output_uri: the output folder of the run.
        references: address of the manifest of references.
        language: of references that say none.
        endpoint_url: the S3 endpoint, where it is not Amazon's.

    Raises:
        ConfigError: no such output, a run of several models, unusable references, or too few
            segments or errors.
        CorpusAsrError: the tables do not hold what they say.
        FetchError: a store failed beyond its retries.
    """
    store = OutputStore(output_uri, endpoint_url=endpoint_url)
    name, revision = _model_of(store)
    outcomes = _outcomes(store, references, language)
    check_enough(outcomes)
    model = replace(fit(outcomes), name=f"{name} {revision}", model_revision=revision)
    before = reliability(outcomes, [one.confidence for one in outcomes])
    after = reliability(outcomes, cross_validated(outcomes))
    groups = len({one.group for one in outcomes})
    address = write_calibration(
        store,
        model,
        fitted={
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "references": redact_uri(references),
            "recordings": groups,
            "before": reliability_data(before),
            "held_out": reliability_data(after),
        },
    )
    return Calibration(model=model, address=address, recordings=groups, before=before, after=after)


def _model_of(store: OutputStore) -> tuple[str, str]:
    """Return the checkpoint of a run, as configured, and the revision of its weights."""
    config, fingerprint = (store.read_json(name) for name in (CONFIG_NAME, FINGERPRINT_NAME))
    if config is None or fingerprint is None:
        missing = CONFIG_NAME if config is None else FINGERPRINT_NAME
        raise ConfigError(
            f"calibrating {redact_uri(store.uri)}: found no {missing}, expected that of the run, "
            "which names its model; restore it, or run again"
        )
    if config["model"].get("by_language"):
        raise ConfigError(
            f"calibrating {redact_uri(store.uri)}: found a run of several models "
            "(model.by_language), expected one; calibrate each on a run of its own"
        )
    return public(config["model"]["checkpoint"]), fingerprint["fingerprint"].partition("-")[2]


def _outcomes(store: OutputStore, references: str, language: str | None) -> list[SegmentOutcome]:
    said = read_references(references, endpoint_url=store.options.endpoint_url, language=language)
    index = read_index(store)
    ours = np.asarray(
        pc.is_in(index.recordings["recording_id"], value_set=pa.array(list(said), pa.string()))
    )
    selection = Selection()
    wanted = chosen(index, selection) & ours
    found: list[SegmentOutcome] = []
    for _, recording in recordings(store, index, wanted, selection, columns=EVIDENCE_COLUMNS):
        reference = said[recording.recording_id]
        found += segment_outcomes(
            recording.segments,
            reference.text,
            reference.language,
            group=recording.recording_id,
        )
    return found
