"""Ray address from the environment."""

import os
import re
from typing import Final

from corpus_asr.config.document import hide_secrets
from corpus_asr.errors import ConfigError

RAY_ADDRESS: Final = "RAY_ADDRESS"
"""Environment variable with the cluster address, as used by Ray's own programs."""


def ray_address() -> str:
    """Return the Ray address in RAY_ADDRESS: `local` (default), `auto` or host:port.

    Raises:
        ConfigError: a run cannot join this address.
    """
    named = os.environ.get(RAY_ADDRESS, "").strip()
    if not named or re.fullmatch(r"local|auto|[^:/\s]+:\d+", named):
        return named or "local"
    wrong = "expected host:port of a cluster, such as 10.0.0.1:6379, auto or local; correct it"
    if named.startswith("ray://"):
        # Ray Data needs a driver that is part of the cluster (seen with Ray 2.60).
        wrong = (
            "Ray Client, which cannot run Ray Data; run the same command on a machine of the "
            "cluster, for example by `ray job submit`"
        )
    elif named.startswith(("http://", "https://")):
        wrong = (
            "a dashboard, which takes jobs and no drivers; submit this command by `ray job submit`"
        )
    raise ConfigError(
        f"finding the Ray to join: {RAY_ADDRESS} is {hide_secrets(named)!r}, {wrong}; or unset it "
        "to start Ray here"
    )
