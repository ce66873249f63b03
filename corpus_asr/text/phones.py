"""Sounds of English by their ARPABET names, and when each ends: what manifests say of passages.

Written as flite prints them, `hh:0.255 ax:0.304 l:0.412`: each sound with the second after the
passage's start at which it ends. Knows no audio.
"""

from dataclasses import dataclass

PAUSE = 0
UNKNOWN = -1
PHONES = (
    "pau", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f",
    "g", "hh", "ih", "iy", "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t",
    "th", "uh", "uw", "v", "w", "y", "z", "zh",
)  # fmt: skip

_NUMBERS = {name: number for number, name in enumerate(PHONES)}


@dataclass(frozen=True, slots=True)
class Phone:
    """A sound that is over by `end_s`."""

    number: int
    """In `PHONES`; `UNKNOWN` for sounds that are not there."""
    end_s: float


def read_phones(written: str) -> list[Phone]:
    """Return the sounds of a passage, in the order of time; none where nothing is written.

    Raises:
        ValueError: a sound has no time, or times run backwards.
    """
    found: list[Phone] = []
    for one in written.split():
        name, _, end = one.rpartition(":")
        phone = Phone(_NUMBERS.get(name, UNKNOWN), float(end))
        if not (found[-1].end_s if found else 0.0) <= phone.end_s < float("inf"):
            raise ValueError(f"the phone {one!r} out of order")
        found.append(phone)
    return found


def write_phones(named: list[tuple[str, float]]) -> str:
    """Return names with the seconds at which they end as manifests hold them."""
    return " ".join(f"{name}:{max(0.0, end_s):.3f}" for name, end_s in named)
