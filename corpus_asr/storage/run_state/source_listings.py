"""Last listing of each source of an output folder.

Recordings of another source are not missing because this source does not list them: another job may
write to the folder, or the source was narrowed. So a source's last plan is kept while it names
recordings that no other listing has.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

from corpus_asr.config.run import SourceSettings
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import normalize, public
from corpus_asr.units import shortened

LISTINGS_NAME: Final = "_run/listings.json"
"""Source settings, by the plan of the listing."""
_ADDRESSES = ("uri", "manifest")
_MAGIC = re.compile(r"[*?\[{]")
_MOST_CHARS = 200  # of a source, in a message


def listing_settings(source: SourceSettings) -> dict[str, list[str]]:
    """Return the settings that determine a source's listing, with URIs normalized."""
    settings = {
        name: [public(normalize(uri)).rstrip("/") for uri in getattr(source, name)]
        for name in _ADDRESSES
    }
    settings |= {"exclude": list(source.exclude), "ignore": list(source.ignore)}
    settings["audio_column"] = [source.audio_column] if source.audio_column else []
    return {name: sorted(values) for name, values in settings.items()}


def read_listings(store: OutputStore) -> dict[str, Any]:
    """Return the notes on sources in an output folder."""
    return store.read_json(LISTINGS_NAME) or {}


def read_roots(store: OutputStore) -> set[str]:
    """Return the folders and files in which noted sources look for recordings."""
    uris = {uri for entry in read_listings(store).values() for uri in entry["source"]["uri"]}
    return {uri if (at := _MAGIC.search(uri)) is None else uri[: at.start()].rpartition("/")[0]
            for uri in uris}  # fmt: skip


def note_listing(store: OutputStore, plan_name: str, source: SourceSettings) -> None:
    """Record a plan as the last listing of its source."""
    settings = listing_settings(source)
    noted = {name: entry for name, entry in read_listings(store).items()
             if entry["source"] != settings}  # fmt: skip
    store.write_json(LISTINGS_NAME, {**noted, plan_name: {"source": settings}})


def describe_change(store: OutputStore, source: SourceSettings) -> str | None:
    """Describe how a source differs from the last one listed; None if it does not."""
    noted = read_listings(store)
    if not noted:
        return None
    old, new = noted[max(noted)]["source"], listing_settings(source)
    changed = [name for name in new if old.get(name) != new[name]]
    if not changed:
        return None
    return f"the source was {_words(old, changed)}, is {_words(new, changed)}"


def _words(settings: Mapping[str, list[str]], names: list[str]) -> str:
    parts = [("" if name in _ADDRESSES else f"{name} ") + ", ".join(settings[name])
             for name in names if settings.get(name)]  # fmt: skip
    return shortened("; ".join(parts) or f"without {', '.join(names)}", _MOST_CHARS)


def other_listings(
    store: OutputStore, plan_name: str | None, source: SourceSettings | None = None
) -> Iterator[pa.Table]:
    """Yield `recording_id` and `plan` of the last listings of other sources than a plan's.

    `source` is that of a plan without a note.
    """
    noted, identities = read_listings(store), Identities.read(store)
    settings = noted.get(plan_name or "", {}).get("source")
    settings = settings if source is None else listing_settings(source)
    for plan, entry in noted.items():
        if plan != plan_name and entry["source"] != settings:
            for name in store.names(f"{plan}/listing"):
                for batch in store.batches(name, columns=["recording_id", "uri"]):
                    ids = identities.without_left(pa.table(batch))["recording_id"]
                    plans = pa.repeat(pa.scalar(plan), len(ids))
                    yield pa.table({"recording_id": ids, "plan": plans})
