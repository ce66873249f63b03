"""A night asks the output's store a bounded number of times."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.pipelines import driver
from corpus_asr.storage.stores.local import LocalStore
from tests.support.corpora import tiny_model
from tests.support.runs import write_tones
from tests.support.tables import run_config

pytestmark = pytest.mark.long

OPERATIONS = ("info", "read_range", "write", "create", "swap", "remove", "pages")


class Requests:
    """Counts the outermost operations of a store below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts, self._depth = folder, Counter[str](), 0

    def counted(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(store: LocalStore, uri: str, *args: Any, **options: Any) -> Any:
            if not self._depth and uri.startswith(str(self.folder)):
                self.counts[f"{name} {uri.removeprefix(str(self.folder))}"] += 1
            self._depth += 1
            try:
                return operation(store, uri, *args, **options)
            finally:
                self._depth -= 1

        return call


def test_a_run_reads_its_manifest_and_lists_its_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = Requests(tmp_path / "out")
    for name in OPERATIONS:
        monkeypatch.setattr(LocalStore, name, requests.counted(name, getattr(LocalStore, name)))
    model = str(tiny_model(tmp_path / "model"))
    config = run_config(tmp_path / "in", tmp_path / "out", model=model)
    numbers: list[int] = []
    for new in (2, 1, 0):
        for number in range(new):
            write_tones(tmp_path / f"in/{len(numbers)}-{number}.wav", seconds=2)
        requests.counts.clear()
        assert driver.run(config, local=True).planned == new
        numbers.append(requests.counts.total())
        assert requests.counts["read_range /_run/tables.json"] == 1
        assert requests.counts["pages /_run/"] == 1
    assert numbers[1] <= 45, requests.counts
    assert numbers[2] <= 25, requests.counts
