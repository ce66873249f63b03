"""Names of commits: unique, and sorted by the time they were made. Knows no store."""

import time
import uuid


def unique_stem(time_ns: int | None = None) -> str:
    """Return a name no other commit has; names sort by the time they were made, or by this one."""
    return f"{time.time_ns() if time_ns is None else time_ns:020d}-{uuid.uuid4().hex[:12]}"


def stem_before(name: str) -> str:
    """Return a unique stem that sorts before an object's; both stand for the same time."""
    time_ns = name.rpartition("/")[2].partition("-")[0]
    return unique_stem(max(0, int(time_ns) - 1) if time_ns.isdecimal() else 0)
