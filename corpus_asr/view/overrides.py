"""What people set of a recording from its page: its number of speakers, and its hotwords.

It stands in place of the columns of the manifest from the next run on (`run_state.overrides`). In
come the row of a recording and what a page asks for; out come values that are written as JSON.
"""

from collections.abc import Mapping
from typing import Any

from corpus_asr.config.extraction import MOST_SPEAKERS, SPEAKER_COUNTS
from corpus_asr.config.hotwords import hotwords_from
from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.errors import ConfigError
from corpus_asr.report.html.formatting import visible
from corpus_asr.storage.manifest import HOTWORDS
from corpus_asr.storage.run_state.overrides import (
    Applied,
    Override,
    override,
    read_override,
    save_override,
)
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.catalogue import GoneError, Library
from corpus_asr.view.editing import ConflictError

_TYPES: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "id": (str, "that of a recording"),
    "num_speakers": ((int, type(None)), f"a whole number from 1 to {MOST_SPEAKERS}, or null"),
    "hotwords": (str, "text, a phrase per line"),
    "name": (str, "text"),
    "seen": (int, "the number that was read last"),
}


def parse_override(body: Mapping[str, Any]) -> tuple[Override, int]:
    """Read what a page sets of a recording, and what it has seen; unknown names are ignored.

    Raises:
        ConfigError: it is nothing that a run can use.
    """
    values = {"num_speakers": None, "hotwords": "", "name": "", "seen": 0} | dict(body)
    for name, (types, expected) in _TYPES.items():
        value = values.get(name)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ConfigError(
                f"setting what a recording has: found {name} {value!r:.50}, expected {expected}"
            )
    own = {name: values[name] for name in ("num_speakers", "hotwords", "name")}
    return override(values["id"], **own), values["seen"]


def described(store: OutputStore, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is set of a recording, what its manifest says, and what its results are of."""
    config = store.read_json(CONFIG_NAME) or {}
    set_now, applied = read_override(store, row["recording_id"]), Applied.of(row["metadata"])
    return {
        "seen": set_now.number,
        "num_speakers": {
            "set": set_now.num_speakers,
            "used": applied.num_speakers,
            "manifest": _speakers(applied.manifest),
        },
        "hotwords": {
            "set": list(set_now.hotwords),
            "used": [visible(each) for each in applied.hotwords],
            "manifest": _hotwords(applied.manifest),
        },
        "name": visible(set_now.name),
        "saved_at": set_now.saved_at,
        "most_speakers": MOST_SPEAKERS,
        # What `transcribe -o` wrote has no later run, and labels have neither.
        "counts": config.get("pipeline") not in (None, CLASSIFY_AUDIO),
        "finds_speakers": (config.get("speakers") or {}).get("mode", "none") != "none",
        "takes_hotwords": not (config.get("decoding") or {}).get("align"),
    }


def save(library: Library, row: Mapping[str, Any], made: Override, seen: int) -> dict[str, Any]:
    """Save what is set of a recording; return it as `described` does.

    Raises:
        ConfigError: the output has no later run.
        ConflictError: somebody else has set something since `seen`.
        GoneError: the recording was moved or forgotten meanwhile; nothing is left of what was set.
        FetchError: the output folder cannot be written to.
    """
    store = library.store
    if not described(store, row)["counts"]:
        raise ConfigError(
            "setting what a recording has: found no later run of this output that could use it, "
            "expected the output of `corpus-asr run`; transcribe the recording with these options"
        )
    saved = save_override(store, made, seen=seen)
    if saved is None:
        who = visible(read_override(store, made.recording_id).name) or "somebody else"
        raise ConflictError(
            f"{who} has set something of this recording meanwhile: nothing was saved; look at it, "
            "and save again to replace it"
        )
    try:
        library.check_there(row)
    except GoneError:
        store.remove(saved.object_name)
        raise
    return described(store, row)


def _speakers(manifest: Mapping[str, Any]) -> str:
    exact, least, most = (manifest.get(name) for name in SPEAKER_COUNTS)
    if exact or not (least or most):
        return visible(str(exact or ""))
    return visible(f"{least or 1} to {most}" if most else f"{least} or more")


def _hotwords(manifest: Mapping[str, Any]) -> list[str]:
    try:
        return [visible(each.phrase) for each in hotwords_from(manifest.get(HOTWORDS))]
    except ValueError:  # the recording failed of it, which its page says
        return []
