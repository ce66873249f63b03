"""Where Ray is: the section `cluster` of a job, and the environment."""

import os
import re
from typing import Final

from pydantic import Field, field_validator

from corpus_asr.config.document import hide_secrets
from corpus_asr.config.settings import Settings
from corpus_asr.errors import ConfigError

_JOINABLE = r"^(local|auto|[^:/\s]+:\d+)$"
# Ray Data needs a driver that is part of the cluster (seen with Ray 2.60).
_NO_RAY_CLIENT = (
    "Ray Client (ray://) cannot run Ray Data; run the same command on a machine of the cluster, "
    "for example by `ray job submit`, with cluster.address: auto"
)
RAY_ADDRESS: Final = "RAY_ADDRESS"
"""The environment variable by which Ray's own programs find their cluster."""


class ClusterSettings(Settings):
    """Ray cluster."""

    address: str | None = Field(default=None, pattern=_JOINABLE)
    """Ray cluster: `local` starts Ray on this machine, `auto` joins the cluster this machine
    belongs to, and host:port names that cluster explicitly. null: the cluster that the environment
    variable RAY_ADDRESS names, as in jobs of `ray job submit`, else `local`."""

    @field_validator("address", mode="before")
    @classmethod
    def _no_ray_client(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("ray://"):
            raise ValueError(_NO_RAY_CLIENT)
        return value

    def ray_address(self) -> str:
        """Return where Ray is, `local`, `auto` or host:port, by the order that Ray itself follows.

        Raises:
            ConfigError: RAY_ADDRESS counts and names nothing that a run can join.
        """
        named = os.environ.get(RAY_ADDRESS, "").strip()
        if not named or self.address not in (None, "auto"):
            return self.address or "local"
        if re.fullmatch(_JOINABLE, named):
            return named
        wrong = "expected host:port of a cluster, such as 10.0.0.1:6379, auto or local; correct it"
        if named.startswith("ray://"):
            wrong = _NO_RAY_CLIENT
        elif named.startswith(("http://", "https://")):
            wrong = (
                "a dashboard, which takes jobs and no drivers; submit this command by `ray job "
                "submit`"
            )
        raise ConfigError(
            f"finding the Ray to join: {RAY_ADDRESS} is {hide_secrets(named)!r}: {wrong}; or unset "
            f"it, or set cluster.address, which counts first: host:port, or `local` to start Ray "
            "here"
        )
