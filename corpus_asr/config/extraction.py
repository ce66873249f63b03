"""Job sections for extraction: audio tracks, speech detection and speakers."""

import math
import re
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from corpus_asr.config.decoding import ALL_TRACKS, AUTO_TRACK, AudioSettings
from corpus_asr.config.settings import Auto, DecodingSection, Settings, Texts, keys_from
from corpus_asr.languages import LANGUAGES, code_of

_CODE = re.compile(r"[A-Za-z]{2,3}")
MEASURES: Final = ("sound", "fingerprint")
"""Packaged measures selectable by name; voice measures follow from `speakers`."""
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


if TYPE_CHECKING:
    _AudioKeys = AudioSettings
else:
    _AudioKeys = keys_from(
        AudioSettings,
        channels=Literal["mix", "each"] | Annotated[int, Field(ge=0)],
        track=Literal["auto", "all"] | Annotated[int, Field(ge=1)] | str,
    )


class ExtractSettings(_AudioKeys, Settings):  # type: ignore[misc]  # both are frozen
    """Decoding, speech detection and feature extraction, on CPUs."""

    measures: Texts = ("sound",)
    """Measures of each part: `sound`, columns of level, noise, bandwidth and clipping of
    each segment; `fingerprint`, by which recordings are compared: a table `duplicates/` of audio
    that several have, such as repeats, trailers and jingles; and classes of yours, as
    package.module:Class, whose values are in the column `measures`."""
    pack_mb: float = Field(default=64.0, gt=0)
    """Size in MiB up to which short files share a task."""
    workers: PositiveInt | Auto = "auto"
    """Number of extract processes; `auto`: the CPUs that transcription does not use."""
    max_buffered_features_mb: Annotated[float, Field(gt=0)] | Auto = "auto"
    """Limit in MiB, over all machines, of extracted features that wait for transcription; at the
    limit extraction blocks. `auto`: half of Ray's object stores, or 64 MiB without Ray, in addition
    to the parts in flight."""
    item_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds without a new part after which a recording fails."""
    max_file_gb: float = Field(default=100.0, gt=0)
    """Maximum file size in GB; a larger file fails before it is opened."""
    max_duration_h: float = Field(default=48.0, gt=0)
    """Maximum duration in hours; the rest of a longer recording fails. Guards against decompression
    bombs."""

    @field_validator("track")
    @classmethod
    def _language_of_name(cls, value: str | int) -> str | int:
        if not isinstance(value, str) or value in (AUTO_TRACK, ALL_TRACKS):
            return value
        code = code_of(value)
        # Films have languages that no recognizer supports.
        if code not in LANGUAGES and not _CODE.fullmatch(code):
            raise ValueError(
                f"found {value}, expected auto, all, a number from 1, or a language by code, tag "
                "or name, such as de, deu or German; correct it"
            )
        return code.lower()

    @field_validator("measures")
    @classmethod
    def _are_measures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in MEASURES and not _REFERENCE.fullmatch(name):
                raise ValueError(
                    f"found {name!r}, expected {', '.join(MEASURES)} or package.module:Class; "
                    "correct it"
                )
        if len(set(value)) < len(value):
            raise ValueError(f"found {', '.join(value)}, expected each once; correct it")
        return value

    @model_validator(mode="after")
    def _one_kind_apart(self) -> Self:
        if self.track == ALL_TRACKS and self.channels != "mix":
            raise ValueError(
                f"extract.channels: found {self.channels} and extract.track: all, expected mix "
                "with all tracks; remove one of them"
            )
        return self

    @property
    def separate(self) -> str:
        """Setting that gives a recording several transcripts; empty if it has one."""
        if self.channels == "each":
            return "channels: each"
        return "track: all" if self.track == ALL_TRACKS else ""


SPEAKER_COUNTS = ("num_speakers", "min_speakers", "max_speakers")
MOST_SPEAKERS = 50
PACKAGED_ENCODER: Final = "campplus"
PACKAGED_SEGMENTATION: Final = "segmentation-3.0"
NO_SEGMENTATION: Final = "none"


class SpeakerSettings(Settings):
    """Speaker detection: a table of turns, and a speaker for each segment and word."""

    mode: Literal["none", "auto", "corpus"] = "none"
    """Speakers: `none`; `auto`: those of each recording, named S1, S2 and so on in order of
    appearance; or `corpus`: voices are also compared across recordings, and named V1, V2 and so on.
    `speakers: auto` is short for this key."""
    num_speakers: int | None = Field(default=None, ge=1, le=MOST_SPEAKERS)
    """Exact number of speakers of each recording (of each channel, if `extract.channels` is
    `each`); null: estimated. A manifest may have columns of this name and the next two for single
    recordings."""
    min_speakers: int | None = Field(default=None, ge=1, le=MOST_SPEAKERS)
    """Minimum number of speakers; null: 1."""
    max_speakers: int | None = Field(default=None, ge=1, le=MOST_SPEAKERS)
    """Maximum number of speakers; null: 12."""
    model: Literal["campplus"] | str = PACKAGED_ENCODER
    """Network that embeds voices, in ONNX: `campplus`, which is packaged, a file, a folder or URI
    with one, or OWNER/NAME or OWNER/NAME/FILE of the Hugging Face Hub, such as those of WeSpeaker
    and 3D-Speaker."""
    segmentation: Literal["segmentation-3.0", "none"] | str = PACKAGED_SEGMENTATION
    """Network that detects speaker changes and overlapping speech, in ONNX: `segmentation-3.0` of
    pyannote, which is packaged, or one named as `model` is. Where two speak at once, both have a
    turn. `none`: one speaker at a time, and less exact turns."""

    @property
    def wanted(self) -> bool:
        """Whether speakers are identified."""
        return self.mode != "none"

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _bounds_fit_together(self) -> "SpeakerSettings":
        if self.num_speakers and (self.min_speakers or self.max_speakers):
            raise ValueError(
                f"num_speakers: {self.num_speakers} is exact; remove min_speakers and "
                "max_speakers, or num_speakers"
            )
        if (self.min_speakers or 1) > (self.max_speakers or MOST_SPEAKERS):
            raise ValueError(
                f"min_speakers: {self.min_speakers} is more than max_speakers, "
                f"{self.max_speakers}; correct them"
            )
        return self

    def of_recording(self, columns: Mapping[str, Any]) -> "SpeakerSettings":
        """Return these settings with the speaker counts of a recording's manifest row.

        A row with an exact count overrides the job's bounds, and bounds override its count.

        Raises:
            ValueError: a value is not a speaker count, or the values are inconsistent.
        """
        row_counts = {
            name: count
            for name in SPEAKER_COUNTS
            if (count := _count(name, columns.get(name))) is not None
        }
        if not row_counts:
            return self
        bounds = dict.fromkeys(SPEAKER_COUNTS)
        if SPEAKER_COUNTS[0] not in row_counts:
            bounds |= {name: getattr(self, name) for name in SPEAKER_COUNTS[1:]}
        counts: dict[str, int | None] = bounds | row_counts
        num, least, most = counts.values()
        if (num and (least or most)) or (least or 1) > (most or MOST_SPEAKERS):
            descriptions = (f"{name} {count}" for name, count in counts.items() if count)
            raise ValueError(" and ".join(descriptions))
        return self.model_copy(update=counts)


def _count(name: str, value: Any) -> int | None:
    # NaN, which is not equal to itself, is pandas' missing value.
    if value in (None, "") or value != value:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number not in range(1, MOST_SPEAKERS + 1):
        raise ValueError(f"{name} {reprlib.repr(value)}")
    return int(number)


NO_SPEAKERS = SpeakerSettings()


def missing_speech(
    decoding: DecodingSection, extract: ExtractSettings, speakers: SpeakerSettings
) -> str:
    """Return the setting that requires speech detection if it is off; else an empty text."""
    needing = "decoding.drop_nonspeech needs" if decoding.drop_nonspeech else ""
    needing = "speakers need" if speakers.wanted else needing
    if not needing or extract.vad_filter:
        return ""
    return (
        f"{needing} detected speech, but extract.vad_filter is false; set it to true, or leave "
        f"{'speakers' if speakers.wanted else 'drop_nonspeech'} out"
    )
