"""The guide to reading: its examples run on an output of this version."""

import re
from pathlib import Path

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.storage.run_state.finish import finish
from corpus_asr.storage.run_state.start import Run
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.commits import commit, files, part, results

GUIDE = (Path(__file__).parents[2] / "docs" / "reading.md").read_text()
# Polars is no tool of this project's tests.
EXAMPLES = [
    code
    for code in re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)
    if "polars" not in code
]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = OutputStore("output/demo")
    commit(store, results(part("a.wav", 0, texts=[" Hi."]), part("b.wav", 0, texts=[" Ho."])))
    config = RunConfig.model_validate(
        {"source": {"uri": "/"}, "model": {"checkpoint": "m"}, "output": {"uri": store.uri}}
    )
    started = "2026-01-01T00:00:00+00:00"
    run = Run(run_id="run", fingerprint="f-r", started_at=started, continues=False)
    listing = [files("a.wav", "b.wav")]
    finish(store, run, config, model_revision="r", listing=listing, num_listed=2)


@pytest.mark.parametrize("code", EXAMPLES, ids=["duckdb", "pandas"])
@pytest.mark.usefixtures("demo")
def test_an_example_shows_every_recording(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code, {})
    shown = capsys.readouterr().out
    assert "a.wav" in shown
    assert "b.wav" in shown
