"""The page of a training shows its curves, however many its steps, and what is no number."""

import math
from typing import Any

from corpus_asr.report.html.training import MOST_POINTS, thinned, training_page
from tests.support.pages import parsed


def step(number: int, **values: Any) -> dict[str, Any]:
    usual = {"loss": 4.0 / number, "lr": 1e-3, "tokens": 300, "wall_s": 0.5}
    return {"step": number, **usual, **values}


def test_curves_of_loss_and_error_rates_are_drawn() -> None:
    rows = [
        {"step": 0, "wer": 0.5}, step(1), step(2, loss=None), step(3, loss=math.inf), step(4),
        {"step": 4, "wer": 0.25}, step(5), {"step": 5, "wer": None},
    ]  # fmt: skip
    page = parsed(training_page("/out/<small>", rows, steps=8))
    loss, wer, rate = page.all("figure")
    assert [each.all("h3")[0].text for each in (loss, wer, rate)] == [
        "Loss",
        "WER",
        "Learning rate",
    ]
    assert [len(each.all("rect", class_="target")) for each in (loss, wer, rate)] == [3, 2, 5]
    [line] = wer.all("path")
    # From 50 % at the start to 25 % at step 4 of 8, on a scale that ends at 60 %.
    assert line.attributes["d"] == "M0 16.67L50 58.33"
    assert "step 4: 25.0%" in wer.text
    figures = page.all("dl", class_="figures")[0].text
    assert "Steps5of 8" in figures
    assert "600 per second" in figures
    assert "25.0%at step 4; 50.0% at step 0" in figures
    assert "/out/<small>" in page.all("h1")[0].text


def test_a_training_that_has_just_begun_has_a_page() -> None:
    for rows in ([], [step(1)], [{"step": 0, "wer": None}]):
        assert "There are no two points yet." in parsed(training_page("out", rows, steps=2)).text


def test_many_steps_are_thinned_to_means() -> None:
    points = [(float(at), float(at % 2)) for at in range(1, 10 * MOST_POINTS)]
    found = thinned(points)
    assert len(found) == MOST_POINTS
    assert found[0] == (10.0, 0.5)
    assert found[-1][0] == points[-1][0]
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]
