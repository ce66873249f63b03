"""What every settings model shares, and the mask over credentials in addresses."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo

Auto = Literal["auto"]
ONE_OR_MANY = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
Texts = Annotated[tuple[str, ...], ONE_OR_MANY]
"""Texts, of which one alone need not be in a list."""


class Settings(BaseModel):
    """Base of all settings; `load.py` turns its validation errors into `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def section_of(field: FieldInfo) -> type[Settings] | None:
    """Return the model of the keys below a key; None for a single value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


MASK = "***"

# user:password@ (or token@) between a scheme and a host. The last @ before the first slash ends
# it, because a password may hold an @ of its own; an @ in an object's key is left alone.
_USER_INFO = re.compile(r"(?<=://)[^/\s?#]*@")

# Signed links carry their credentials in the query: X-Amz-Signature, sig, AWSAccessKeyId, token...
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&][^=&\s]*(?:sig|token|key|secret|credential|passw|auth|policy)[^=&\s]*=)[^&#\s]+",
    re.IGNORECASE,
)


def hide_secrets(text: str) -> str:
    """Mask user names, passwords and signatures in the addresses that `text` holds."""
    without_user = _USER_INFO.sub(f"{MASK}@", text)
    return _QUERY_SECRET.sub(rf"\g<name>{MASK}", without_user)
