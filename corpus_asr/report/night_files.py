"""Summaries of nights: written, read again by later nights, and told to a webhook.

In: a `Night`, and the folder of summaries. Out: a .json and a .md per night, a message, and past
nights. Knows nothing of how a night came about.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace

from corpus_asr.errors import CorpusAsrError, FetchError
from corpus_asr.logs import event
from corpus_asr.report.night import Night, PastNight, as_data, past_from
from corpus_asr.report.night_render import chat, markdown
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.http import post_json
from corpus_asr.storage.stores.uri import redact_uri

logger = logging.getLogger(__name__)

_SUMMARY = re.compile(r"(\d{4}-\d\d-\d\d)(?:-(\d+))?\.json", re.ASCII)


def tell(
    night: Night,
    summaries: OutputStore,
    *,
    webhook_env: str | None,
    allow_hosts: Sequence[str] | None,
) -> Night:
    """Write the summary, tell the webhook, and note if that failed.

    Of a night that broke off, a summary that cannot be written is logged, and the webhook is told
    all the same: perhaps it broke off for that very reason.

    Args:
        night: the night.
        summaries: their folder.
        webhook_env: the variable that holds the webhook's address; None for none.
        allow_hosts: where http is good enough for it.

    Raises:
        FetchError: the summary of a night that came to its end could not be written.
    """
    name = _write(summaries, None, night)
    if webhook_env is None:
        return night
    where = "no summary could be written" if name is None else summaries.address(f"{name}.md")
    message = {"text": chat(night, where), "night": as_data(night)}
    try:
        post_json(os.environ.get(webhook_env, ""), message, allow_hosts=allow_hosts)
    except FetchError as error:
        # The night's work is worth more than the message about it.
        event(logger, logging.WARNING, "webhook_not_told", variable=webhook_env, error=str(error))
        night = replace(night, not_told=f"{error} ({webhook_env})")
        if name is not None:
            _write(summaries, name, night)
    return night


def _write(summaries: OutputStore, name: str | None, night: Night) -> str | None:
    """Write under a name, or a new one; return it, or None if that failed after a broken night."""
    try:
        name = name or _free_name(summaries, night.date)
        summaries.write_bytes(f"{name}.md", markdown(night).encode("utf-8", "replace"))
        summaries.write_json(f"{name}.json", as_data(night))
    except FetchError as error:
        if night.error is None:
            raise
        event(logger, logging.WARNING, "summary_not_written", error=str(error))
        return None
    return name


def past_nights(summaries: OutputStore, count: int) -> tuple[PastNight, ...]:
    """Return the last nights a folder has summaries of, the latest first.

    One that cannot be read is left out, and logged.

    Raises:
        FetchError: the store does not answer.
    """
    found = (_past_night(summaries, name) for name in _summary_names(summaries)[-count:])
    return tuple(reversed([one for one in found if one is not None]))


def _free_name(summaries: OutputStore, date: str) -> str:
    """Return a name, without its suffix, that no summary has: several may begin on a day."""
    names = _summary_names(summaries)
    numbers = [number for day, number, _ in map(_parts, names) if day == date]
    return date if not numbers else f"{date}-{max(numbers) + 1}"


def _summary_names(summaries: OutputStore) -> list[str]:
    names = (name for name in summaries.all_names("") if _SUMMARY.fullmatch(name))
    return sorted(names, key=_parts)


def _parts(name: str) -> tuple[str, int, str]:
    match = _SUMMARY.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 1), name


def _past_night(summaries: OutputStore, name: str) -> PastNight | None:
    try:
        past = past_from(summaries.read_json(name))
    except CorpusAsrError as error:
        logger.warning("earlier night left out: %s", error)
        return None
    if past is None:
        logger.warning(
            "earlier night left out: %s is no summary", redact_uri(summaries.address(name))
        )
    return past
