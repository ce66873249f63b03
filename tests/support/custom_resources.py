"""Custom resources of Kubernetes, checked as `kubectl apply` does: unknown fields are errors.

What a definition leaves to the API server's expressions (`x-kubernetes-validations`) is not
evaluated.
"""

import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

# Of metadata the definitions say that it is an object, and Kubernetes knows the rest.
METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


class StrictSchema:
    """The schema of one kind, closed: a field that it does not name is refused.

    Args:
        schema: `openAPIV3Schema` of a served version.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        schema = copy.deepcopy(schema)
        schema["properties"].pop("status", None)  # the operator's to write
        schema["properties"]["metadata"] = METADATA
        self._schema = _closed(schema)
        self._validator = Draft202012Validator(self._schema)

    @classmethod
    def of_file(cls, path: Path) -> "StrictSchema":
        """Read a schema from gzipped JSON."""
        return cls(json.loads(gzip.decompress(path.read_bytes())))

    def problems(self, document: dict[str, Any]) -> list[str]:
        """Return what the API server would refuse, each with its place."""
        errors = sorted(self._validator.iter_errors(document), key=lambda error: error.json_path)
        return [
            *_doubled(document, self._schema, "$"),
            *(f"{error.json_path}: {error.message}" for error in errors),
        ]

    def knows(self, *path: str) -> bool:
        """Tell whether there is a field of this path."""
        schema = self._schema
        for key in path:
            schema = schema.get("properties", {}).get(key)
            if schema is None:
                return False
        return True


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(child) for child in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(child) for name, child in value.items()}
        if key == "properties"
        else _closed(value)
        for key, value in schema.items()
    }
    keeps_unknown = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if "properties" in schema and "additionalProperties" not in schema and not keeps_unknown:
        closed["additionalProperties"] = False
    return closed


def _doubled(value: Any, schema: dict[str, Any], place: str) -> Iterator[str]:
    """Find entries of lists that are maps (containers, volumes, variables) under one name."""
    if isinstance(value, dict):
        for key, child in value.items():
            below = schema.get("properties", {}).get(key)
            if below is not None:
                yield from _doubled(child, below, f"{place}.{key}")
    if not isinstance(value, list) or "items" not in schema:
        return
    keys = schema.get("x-kubernetes-list-map-keys", [])
    names = [tuple(entry.get(key) for key in keys) for entry in value if keys]
    for name in sorted({repr(name) for name in names if names.count(name) > 1}):
        yield f"{place}: {name} comes twice"
    for index, entry in enumerate(value):
        yield from _doubled(entry, schema["items"], f"{place}[{index}]")
