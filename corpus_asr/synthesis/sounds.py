"""When which sound is spoken: what a speaking program prints in, ARPABET names with times out.

flite names sounds so itself; espeak-ng has names of its own, more of them, by accent. Knows no
audio.
"""

from itertools import pairwise

# Vowels before an r, and what stands for a letter that is not spoken, keep their nearest sound.
_OF_ESPEAK = {
    "@": "ax", "@2": "ax", "@-": "ax", "@5": "ax", "a#": "ax", "3": "er", "3:": "er", "VR": "er",
    "@L": "l", "I": "ih", "I2": "ih", "I#": "ih", "IR": "ih", "i": "iy", "i:": "iy", "i@": "iy",
    "i@3": "iy", "E": "eh", "e@": "eh", "a": "ae", "aa": "ae", "A:": "aa", "A@": "aa", "0": "aa",
    "V": "ah", "O:": "ao", "O": "ao", "O2": "ao", "O@": "ao", "o@": "ao", "U": "uh", "U@": "uh",
    "u:": "uw", "aI": "ay", "aI2": "ay", "aI3": "ay", "aI@": "ay", "aU": "aw", "aU@": "aw",
    "eI": "ey", "oU": "ow", "OI": "oy", "p": "p", "b": "b", "t": "t", "t#": "t", "t[": "t",
    "t2": "t", "?": "t", "d": "d", "k": "k", "g": "g", "tS": "ch", "dZ": "jh", "f": "f", "v": "v",
    "T": "th", "D": "dh", "s": "s", "z": "z", "S": "sh", "Z": "zh", "h": "hh", "m": "m", "n": "n",
    "n-": "n", "N": "ng", "l": "l", "r": "r", "r-": "r", "r/": "r", "j": "y", "w": "w", "w#": "w",
    "_": "pau", "_:": "pau", "_!": "pau", "_|": "pau",
}  # fmt: skip
_NO_NAME = "?"


def sounds_of_flite(printed: str) -> list[tuple[str, float]]:
    """Read what `flite -psdur` prints: names with the seconds at which they end."""
    pairs = (one.rpartition(":") for one in printed.split())
    return [(name, float(end)) for name, _, end in pairs if name]


def sounds_of_espeak(printed: str, *, rate_hz: int, num_samples: int) -> list[tuple[str, float]]:
    """Read what `espeak.py` prints, samples at which sounds begin with espeak-ng's names."""
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    begun = [(int(sample), name) for sample, name in lines]
    return [
        (_OF_ESPEAK.get(name, _NO_NAME), end / rate_hz)
        for (_, name), (end, _) in pairwise([*begun, (num_samples, "")])
    ]
