"""What a run notes about itself: its settings without secrets, and the code that ran.

In: a configuration. Out: values fit for JSON. Knows no store.
"""

import platform
from importlib import metadata
from typing import Any

from corpus_asr.config.run import RunConfig
from corpus_asr.storage.hub_names import full_name
from corpus_asr.storage.stores.uri import public, without_secrets

PACKAGES = (
    "corpus-asr", "torch", "ray", "av", "numpy", "pyarrow", "fsspec", "s3fs", "huggingface_hub",
    "tokenizers", "onnxruntime", "silero-vad",
)  # fmt: skip


def safe_config(config: RunConfig) -> dict[str, Any]:
    """Return the resolved configuration: models by their full names, addresses without secrets."""
    safe: dict[str, Any] = _safe(config.model_dump(mode="json"))
    model = safe["model"]
    model["checkpoint"] = full_name(model["checkpoint"])
    model["by_language"] = {code: full_name(name) for code, name in model["by_language"].items()}
    return safe


def _safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_safe(item) for item in value]
    if isinstance(value, str) and "://" in value:
        return without_secrets(public(value))
    return value


def code_versions() -> dict[str, str]:
    """Return the versions of everything that takes part in a run and is installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
