"""Hooks: custom functions that process committed transcripts, configured in the list `hooks`."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from corpus_asr.config.settings import Settings

VALUES: Final = ("string", "bool", "int32", "int64", "float32", "float64")
"""Arrow names of the value types of hook columns."""
_TYPE = re.compile(rf"({'|'.join(VALUES)})|list<({'|'.join(VALUES)})>")
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,62}")
KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "segment": ("recording_id", "uri", "channel", "part", "segment", "start_s", "end_s"),
    "recording": ("recording_id", "uri"),
}
"""Key columns of a hook's rows."""
ROW_KEYS: Final = ("recording_id", "part", "segment")
"""Key columns of a function's rows per segment."""
STATE: Final = ("error_kind", "error_message", "made_of")


class HookSettings(Settings):
    """A function of yours that is given transcripts once they are committed."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    """Name of its table, in the folder hooks/ of the output."""
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """The function, or a class of which each worker makes one, as package.module:name. It is given
    an Arrow table of segments of whole recordings, as people see them, and returns columns."""
    columns: Annotated[dict[str, str], Field(min_length=1)]
    """Columns that it returns, with their types: string, bool, int32, int64, float32, float64, or
    list<...> of one of these."""
    per: Literal["segment", "recording"] = "segment"
    """Unit of the returned rows: each `segment` that it is given, one row in any order with its
    columns `recording_id`, `part` and `segment`; or each `recording`, any number of rows with a
    column `recording_id`."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Arguments by name for the function, or for its class. They stand in the output: let the
    function read secrets from the environment."""
    version: str | int = 1
    """Your function's version: with another one all recordings are processed again."""
    words: bool = False
    """Whether segments have their words with times, which are many."""
    batch_segments: PositiveInt = 1000
    """Number of segments after which no further recording joins a call."""
    attempts: PositiveInt = 3
    """Number of times that a recording is tried, alone, before its row says why it failed; each run
    tries it again."""

    @field_validator("columns")
    @classmethod
    def _of_known_types(cls, value: dict[str, str]) -> dict[str, str]:
        for name, kind in value.items():
            if not _COLUMN.fullmatch(name):
                raise ValueError(
                    f"found a column {name!r}, expected a name of lower-case letters, digits and "
                    "underscores"
                )
            if not _TYPE.fullmatch(kind):
                raise ValueError(
                    f"found the type {kind!r} of {name}, expected {', '.join(VALUES)}, or "
                    "list<...> of one of them"
                )
        return value

    @model_validator(mode="after")
    def _columns_are_no_keys(self) -> Self:
        if taken := sorted({*self.columns} & {*KEYS[self.per], *STATE}):
            raise ValueError(
                f"hooks: found {', '.join(taken)} among the columns of {self.name}, which every "
                f"table per {self.per} has; choose other names"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """Return the settings that affect the function's results, as text."""
        settings = self.model_dump(mode="json", exclude={"batch_segments", "attempts"})
        return json.dumps(settings, sort_keys=True)
