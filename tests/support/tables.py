"""Small tables in the package's schemas."""

from typing import Any

import pyarrow as pa

from corpus_asr.schemas import PACKS, RESULTS


def packs_of(*uris: str, done: dict[str, list[int]] | None = None) -> pa.Table:
    """Return one pack of these recordings."""
    files = [
        {
            "recording_id": uri,
            "uri": uri,
            "size_bytes": 1000,
            "etag": "etag",
            "metadata": None,
            "done_parts": (done or {}).get(uri, []),
        }
        for uri in uris
    ]
    row = {"pack_id": 0, "pack_bytes": 1000 * len(uris), "files": files}
    return pa.Table.from_pylist([row], schema=PACKS)


def results_of(*rows: dict[str, Any]) -> pa.Table:
    """Return RESULTS rows; what a row leaves out is that of a short transcribed recording."""
    usual = {
        "recording_id": "r",
        "uri": "memory://r",
        "size_bytes": 1000,
        "part": 0,
        "last_part": True,
        "duration_s": 10.0,
        "status": "ok",
        "attempts": 1,
        "segments_written": 0,
        "segments": [],
    }
    return pa.Table.from_pylist([usual | row for row in rows], schema=RESULTS)
