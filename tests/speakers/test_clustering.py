"""How many speakers there are and who is who, from embeddings alone."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from corpus_asr.speakers.clustering import (
    MAX_NODES,
    MAX_SPEAKERS,
    SpeakerBounds,
    agglomerate,
    find_speakers,
)

WIDTH = 192


def voices(number: int, seed: int = 0) -> np.ndarray:
    """Directions as far from one another as those of CAM++: cosines of about 0.1."""
    draw = np.random.default_rng(seed)
    common, own = draw.standard_normal(WIDTH), draw.standard_normal((number, WIDTH))
    directions = 0.33 * common + own
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions.astype(np.float32)


def talk(directions: np.ndarray, turns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of turns of 4 to 12 windows; cosines of a speaker's are about 0.57."""
    draw = np.random.default_rng(seed)
    said: list[int] = []
    for turn in range(turns):
        number = turn if turn < len(directions) else int(draw.integers(len(directions)))
        said += [number] * int(draw.integers(4, 13))
    noise = draw.standard_normal((len(said), WIDTH)) / np.sqrt(WIDTH)
    vectors = directions[said] + 0.85 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), np.array(said)


def same_grouping(found: np.ndarray, truth: np.ndarray) -> bool:
    pairs = set(zip(found.tolist(), truth.tolist(), strict=True))
    return len(pairs) == len(set(truth.tolist())) == len(set(found.tolist()))


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 2, 3, 6, 10])
def test_the_number_of_speakers_is_found(number):
    vectors, said = talk(voices(number), turns=5 * number)
    found = find_speakers(vectors)
    assert same_grouping(found.labels, said)
    # In order of appearance, which here is that of the truth.
    assert found.labels.tolist() == said.tolist()
    assert found.voices.shape == (number, WIDTH)
    assert found.confidences.min() > 0.5
    again = find_speakers(vectors)
    assert np.array_equal(again.labels, found.labels)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((2, None, None), 2),
        ((4, None, None), 4),
        ((6, None, None), 6),
        ((None, None, 3), 3),
        ((None, 5, None), 5),
        ((None, 2, 8), 4),
        ((1, None, None), 1),
    ],
)
def test_bounds_are_kept(bounds, expected):
    vectors, _ = talk(voices(4), turns=30)
    found = find_speakers(vectors, SpeakerBounds.of(*bounds))
    assert len(np.unique(found.labels)) == len(found.voices) == expected


@pytest.mark.parametrize("number", [2, 4, 6])
@pytest.mark.parametrize("long_share", [0.02, 0.6])
def test_a_required_number_is_kept_where_most_windows_are_short(number, long_share):
    for seed in range(8):
        vectors, _ = talk(voices(3, seed), turns=8, seed=seed)
        draw = np.random.default_rng(seed)
        lasts_s = np.where(draw.random(len(vectors)) < long_share, 1.6, 0.3)
        found = find_speakers(vectors, SpeakerBounds.of(number, None, None), lasts_s=lasts_s)
        assert len(np.unique(found.labels)) == len(found.voices) == number


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_little_speech_is_one_speaker(size):
    vectors, _ = talk(voices(1), turns=1)
    found = find_speakers(vectors[:size])
    assert found.labels.tolist() == [0] * size
    assert len(found.voices) == min(size, 1)
    two = find_speakers(vectors[:size], SpeakerBounds.of(2, None, None))
    assert len(two.voices) <= size


def test_a_mixture_of_two_voices_between_their_turns_is_no_third():
    directions = voices(2)
    vectors, said = talk(directions, turns=12)
    draw = np.random.default_rng(3)
    mixed = directions.sum(axis=0) + 0.6 * draw.standard_normal((11, WIDTH)) / np.sqrt(WIDTH)
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    borders = np.flatnonzero(np.diff(said)) + 1
    vectors = np.insert(vectors, borders, mixed[: len(borders)], axis=0).astype(np.float32)
    assert len(borders) >= 3
    assert len(find_speakers(vectors).voices) == 2


@pytest.mark.parametrize("seed", [0, 3])
def test_a_voice_that_changes_for_once_in_a_short_recording_is_no_third(seed: int) -> None:
    vectors, _ = talk(voices(2, seed), turns=6, seed=seed)
    mood = np.random.default_rng(seed + 9).standard_normal(WIDTH)
    vectors[-5:] += (0.7 * mood / np.linalg.norm(mood)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert len(find_speakers(vectors).voices) == 2


def test_those_who_speak_once_are_found_beside_two_who_speak_most():
    draw = np.random.default_rng(4)
    said = np.repeat(range(6), 6).tolist()
    for turn in range(10):
        said += [(turn + 1) % 2] * int(draw.integers(4, 13))
    vectors = voices(6, 4)[said] + 0.6 * draw.standard_normal((len(said), WIDTH)) / np.sqrt(WIDTH)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert find_speakers(vectors).labels.tolist() == said


def test_one_window_of_another_voice_is_smoothed_away():
    vectors, said = talk(voices(2), turns=10)
    vectors[2] = 0.55 * vectors[2] + 0.45 * vectors[said == 1][0]
    vectors[2] /= np.linalg.norm(vectors[2])
    assert np.array_equal(find_speakers(vectors).labels, said)


@pytest.mark.long
def test_long_recordings_are_condensed_and_come_out_the_same():
    vectors, said = talk(voices(5), turns=600)
    assert len(vectors) > 7 * MAX_NODES
    assert np.array_equal(find_speakers(vectors).labels, said)


def test_a_repeated_conversation_has_the_same_speakers():
    directions = voices(3)
    moods = directions[:, None] + 0.5 * voices(12, 5).reshape(3, 4, WIDTH)
    moods = moods.reshape(12, WIDTH) / np.linalg.norm(moods.reshape(12, WIDTH), axis=1)[:, None]
    vectors, _ = talk(moods.astype(np.float32), turns=36)
    assert len(find_speakers(vectors).voices) == len(
        find_speakers(np.tile(vectors, (30, 1))).voices
    )


def test_agglomeration_is_average_linkage():
    vectors, _ = talk(voices(4), turns=12)
    order = linkage(vectors, method="average", metric="cosine")
    for most in (2, 5, 20):
        expected = fcluster(order, most, criterion="maxclust")
        found = agglomerate(vectors, np.ones(len(vectors), dtype=np.float32), most=most)
        assert same_grouping(found, expected)


@pytest.mark.parametrize(("cosine", "expected"), [(0.6, 2), (0.95, 1)])
def test_voices_are_merged_if_they_are_similar_enough(cosine, expected):
    first, second = np.linalg.qr(voices(2).T)[0].T
    directions = np.stack([first, cosine * first + np.sqrt(1 - cosine**2) * second])
    vectors, _ = talk(directions.astype(np.float32), turns=12)
    assert len(find_speakers(vectors).voices) == expected


def test_more_voices_than_the_maximum_are_merged():
    vectors, _ = talk(voices(15), turns=30)
    assert len(find_speakers(vectors).voices) == MAX_SPEAKERS
    vectors, _ = talk(voices(25), turns=60)
    assert len(find_speakers(vectors, SpeakerBounds(most=50)).voices) == 25


@pytest.mark.parametrize(("window_s", "expected"), [(0.1, 2), (2.0, 3)])
def test_little_speech_is_no_other_speaker(window_s, expected):
    directions = voices(3)
    speech, sound = talk(directions[:2], turns=16)[0], talk(directions[2:], turns=1)[0][:4]
    vectors = np.concatenate([speech, sound])
    lasts_s = np.repeat([1.6, window_s], [len(speech), len(sound)])
    assert len(find_speakers(vectors, lasts_s=lasts_s).voices) == expected
