"""What every settings model shares: frozen, strict, unknown keys refused."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Auto = Literal["auto"]


class Settings(BaseModel):
    """Base of all settings; `load.py` turns its validation errors into `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
