"""What a night may take and cost, and whom it tells."""

from pydantic import Field, PositiveInt

from corpus_asr.confidence import LOW_CONFIDENCE
from corpus_asr.config.base import Settings


class NightlySettings(Settings):
    """Read by `corpus-asr nightly` alone; nothing here changes what a transcript says."""

    stop_after_h: float | None = Field(
        default=None, gt=0,
        description="After so many hours nothing new is begun, and what is being decoded gets ten "
        "minutes more; the next night goes on. null: until all is done.",
    )  # fmt: skip
    retry_nights: int = Field(
        default=3, ge=0,
        description="Nights in which what failed for a passing reason is tried again; then it is "
        "left alone.",
    )  # fmt: skip
    max_failed_fraction: float | None = Field(
        default=0.1, ge=0, le=1,
        description="Share of the night's recordings that may fail, though always one of them "
        "unless it is 0; beyond, the command exits with 1. null: any.",
    )  # fmt: skip
    max_failed: int | None = Field(
        default=None, ge=0,
        description="How many of the night's recordings may fail before the command exits with 1.",
    )  # fmt: skip
    low_confidence: float = Field(
        default=LOW_CONFIDENCE, ge=0, le=1,
        description="Recordings whose mean confidence is below are named in the summary.",
    )  # fmt: skip
    past_nights: PositiveInt = Field(
        default=14, description="How many earlier nights a night is compared with."
    )
    summaries: str | None = Field(
        default=None,
        description="Folder of the summaries, a .json and a .md per night; any fsspec scheme. "
        "null: `nights/` in the output.",
    )
    webhook_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the https address to which the "
        "summary is posted, such as a Slack webhook's; null: none. http goes to hosts in "
        "source.allow_hosts only.",
    )
