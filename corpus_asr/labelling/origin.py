"""How the transcripts came about: what the run that is selected from notes of itself.

In: its output folder. Out: the settings that matter for reading its audio again, and those that a
data set says of it. They need not be those of the job that selects.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.start import CONFIG_NAME, FINGERPRINT_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A run, as a data set made of it knows it."""

    transcripts: str
    """Its output folder."""
    fingerprint: str
    """Of its settings and weights."""
    checkpoint: str
    channels: Literal["mix", "each"] | int
    by_language: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """The weights' part of the fingerprint."""
        return self.fingerprint.partition("-")[2]

    def model(self, language: str | None) -> dict[str, str]:
        """Return the columns that say which model wrote a text in a language."""
        model = self.by_language.get(language or "", self.checkpoint)
        return {"model": model, "model_revision": self.revision}

    def as_data(self) -> dict[str, Any]:
        """Return what the card says of the run, settings that are null left out."""
        found = {
            "checkpoint": self.checkpoint,
            "revision": self.revision,
            "by_language": self.by_language or None,
            "transcripts": self.transcripts,
            "extract.channels": self.channels,
            **{f"decoding.{key}": value for key, value in self.decoding.items()},
        }
        return {key: value for key, value in found.items() if value is not None}


def read_origin(store: OutputStore) -> Origin:
    """Read what a run notes of itself.

    Raises:
        ConfigError: it has no notes.
        FetchError: the store does not answer.
    """
    config, fingerprint = (store.read_json(name) for name in (CONFIG_NAME, FINGERPRINT_NAME))
    if config is None or fingerprint is None:
        missing = CONFIG_NAME if config is None else FINGERPRINT_NAME
        raise ConfigError(
            f"selecting from {redact_uri(store.uri)}: found no {missing}, expected that of the "
            "run, which says how its audio was read; restore it, or run again"
        )
    return Origin(
        transcripts=redact_uri(store.uri),
        fingerprint=fingerprint["fingerprint"],
        checkpoint=config["model"]["checkpoint"],
        channels=config["extract"]["channels"],
        by_language=config["model"].get("by_language") or {},
        decoding=config["decoding"],
    )
