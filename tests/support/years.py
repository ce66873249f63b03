"""A year of nights over an archive that lives, and what must be true after each of them.

Neither audio nor a model is needed; all else is the program's.
"""

import datetime
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.config.run import Retry, RunConfig, RunOptions
from corpus_asr.edits.corrected_segments import SeenSegments
from corpus_asr.edits.corrections import Corrections
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.export.recordings import (
    Recording,
    Selection,
    open_selection,
    recordings,
)
from corpus_asr.families.registry import FAMILIES
from corpus_asr.pipelines import driver, nightly
from corpus_asr.runtime.checkpoints import Checkpoint
from corpus_asr.runtime.commit import Committer, tally_of
from corpus_asr.runtime.progress import Progress
from corpus_asr.storage.run_state.forget import allow_again, find_recordings, finish_killed, forget
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.prune import find_gone, prune
from corpus_asr.storage.run_state.run_files import FINGERPRINT_NAME, new_run_id
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.clocks import DAY_S, WrongClock
from tests.support.living_archive import Lines, LivingArchive, broken, lines_of, plain
from tests.support.nightly import QUICK
from tests.support.runs import correct_segment
from tests.support.stores import life
from tests.support.tables import digest_of, part, plain_read, results, run_config, stored_segments

REDO_TONIGHT = "/s1"  # the folder whose recordings are done again


class Year(LivingArchive):
    """An archive and its output folder, through any number of nights."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, clock: WrongClock, *, seed: int, files: int,
        pages: float = 0.1,
    ) -> None:  # fmt: skip
        """Begin with some files; `pages` is the share of runs that are whole `nightly` commands."""
        self._clock, self._pages = clock, pages
        self.output_name = "out"
        self.events: Counter[str] = Counter()
        self.take = 0
        self._budget: int | None = None
        self._late = False
        self._down = 0.0
        self._kind = ""
        self._checkpoint = Checkpoint(
            name="model", folder=folder, family=FAMILIES["whisper"], revision="weights"
        )
        patch.setattr(nightly, "prepare", lambda config: self._checkpoint)
        patch.setattr(driver, "run_local", self._work)
        patch.setattr(driver.CorpusRun, "_out_of_time", lambda run: self._late)
        self.done: list[str] = []
        """Addresses that the last night worked on."""
        self._there: dict[str, int] = {}
        """The files of tonight, also those that are hidden."""
        self._held: set[tuple[str, int]] = set()
        """Those of all nights since the tables were compared, of which one was killed, maybe."""
        self._sizes: dict[str, int | None] = {}
        """Contents of what `good` has; None of what a manifest names, which stays where it is."""
        self.last_listed: dict[str, float] = {}
        self._pruned: set[str] = set()
        """File names of pruned recordings, of which summaries of nights keep earlier addresses."""
        self.redo: str | None = None
        super().__init__(folder, seed=seed, files=files)

    @property
    def config(self) -> RunConfig:
        output = {"uri": str(self.project / self.output_name), "target_file_mb": 1}
        return run_config("", "", source=self._source(), output=output, model="model",
                          decoding=self._decoding())  # fmt: skip

    def _source(self) -> dict[str, Any]:
        return {"uri": str(self.source)}

    def _decoding(self) -> dict[str, Any]:
        return {}

    @property
    def store(self) -> OutputStore:
        return OutputStore(self.config.output.uri)

    def correct(self) -> None:
        """Let a person correct a segment."""
        contents = Counter(self.files().values())
        good = {text for said in self.good.values() for _, text in said}
        # A run that was killed since may have replaced some, and left their object.
        rows = (row for batch in stored_segments(self.store) for row in batch.to_pylist())
        texts = Counter(row["text"] for row in rows if row["text"] in good)
        known = sorted(
            text for text, count in texts.items()
            if count == 1 and contents[content := int(text.split()[0])] == 1
            and content not in self.copied and content not in self.corrected
        )  # fmt: skip
        if known:
            text = self.chance.choice(known)
            words = f"corrected {text}"
            correct_segment(self.store, text, words)
            self.corrected[int(text.split()[0])] = (text, words)

    def forget(self) -> None:
        """Let somebody be erased, with a killed command in between."""
        with self._locked() as store:
            known = self._only_ones_of_their_name()
            if not known:
                return
            uri, content = self.chance.choice(known)
            found = find_recordings(store, [f"*/{Path(uri).name}"])
            assert uri in found.recordings.values()
            with life(self.chance.randint(1, 12)):
                forget(store, found.recordings)
            finish_killed(store)
            forget(store, found.recordings)
        name = Path(uri).name.encode()
        for path in Path(self.store.uri).rglob("*"):
            assert not path.is_file() or name not in path.read_bytes(), path
        self._drop(found.recordings.values())
        self.away[content] = uri
        self.corrected.pop(content, None)

    def _only_ones_of_their_name(self) -> list[tuple[str, int]]:
        """Return address and content of files that are known by what nothing else is or was."""
        contents = Counter(self.files().values())
        rows = self.read("outcomes")
        now = {row["recording_id"]: Path(row["uri"]).name for row in rows}
        # Names come back: what had one before it was renamed keeps it as a former address.
        others = {
            Path(uri).name for recording, uri in Identities.read(self.store).pairs()
            if now.get(recording) != Path(uri).name
        }  # fmt: skip
        # A touched file that was renamed has rows at its old address as well, until a prune.
        elsewhere = Counter(
            content for content, _ in {(row["size_bytes"], row["uri"]) for row in rows}
        )
        return sorted(
            (uri, content) for uri, content in self.files().items()
            if uri in self.good and content not in self.copied and contents[content] == 1
            and content not in self.away and elsewhere[content] <= 1
            and Path(uri).name not in others | self._pruned and self._is_of(uri, content)
        )  # fmt: skip

    def _is_of(self, uri: str, content: int) -> bool:
        return plain(self.good[uri]) == lines_of(content) and bool(self.good[uri])

    def allow(self) -> None:
        for content, uri in list(self.away.items())[:1]:
            with self._locked() as store:
                allow_again(store, [uri])
            del self.away[content]

    def prune(self, days: int = 5) -> None:
        older = datetime.timedelta(days=days)
        with self._locked() as store:
            found = find_gone(store, older_than=older)
            if 2 * len(found.gone) > found.recordings or not found.gone:
                return
            with life(self.chance.randint(1, 12)):
                prune(store, [each.recording_id for each in found.gone])
            finish_killed(store)
            gone = find_gone(store, older_than=older).gone
            prune(store, [each.recording_id for each in gone])
        now_s = self._clock.ahead_s
        for each in found.gone:
            assert self.last_listed.get(each.uri, -1e9) <= now_s - days * DAY_S, each.uri
        uris = [each.uri for each in found.gone]
        self._pruned |= {Path(uri).name for uri in uris}
        for uri in uris:
            for content in {int(text.split()[0]) for _, text in self.good.get(uri, ())}:
                self.corrected.pop(content, None)
        self._drop(uris)
        self.events["pruned recordings"] += len(uris)

    def _drop(self, uris: Iterable[str]) -> None:
        for uri in uris:
            self.good.pop(uri, None)
            # Also of what moved before a night that did not list all.
            self.recognizable -= {uri, *(old for old, new in self.moved.items() if new == uri)}
        assert not {row["uri"] for row in self.read("recordings")} & {*uris}

    def ask_again(self) -> None:
        """Let a folder's recordings be done again."""
        self._ask(REDO_TONIGHT)

    def _ask(self, within: str) -> None:
        self.take += 1
        if self.redo != "all":
            self.redo = f"uri like '%{within}%'" if within else "all"

    def upgrade_with_a_new_setting(self) -> None:
        """Let the folder be one of a version that did not have a setting."""
        self._stored_settings(**{"decoding.prefix": ...})

    def upgrade_with_another_default(self) -> None:
        """Let the folder be one of a version with another default: its results are refused."""
        self._stored_settings(**{"extract.part_s": 300.0})
        before = self.tables()
        with pytest.raises(ConfigError, match=r"extract\.part_s: was 300\.0, now 600\.0"):
            self._run(None)
        assert self.tables() == before
        self._ask("")

    def _stored_settings(self, **changes: Any) -> None:
        note = self.store.read_json(FINGERPRINT_NAME)
        if note is None:
            return
        kept = {key: value for key, value in (note["settings"] | changes).items()
                if value is not ...}  # fmt: skip
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
        name = f"{digest}-{note['fingerprint'].partition('-')[2]}"
        self.store.write_json(FINGERPRINT_NAME, {"fingerprint": name, "settings": kept})

    def day(self, name: str) -> None:
        getattr(self, name)()
        self.events[name] += 1

    # What happens by night.

    def _locked(self) -> Any:
        return _Held(self.store)

    def night(self, trouble: str = "", *, kills: int = 0, last_killed: bool = False) -> None:
        """Let a night pass, and see that all is as it should be."""
        self.events[trouble or "quiet"] += 1
        self._clock.ahead_s += DAY_S
        self._there = self.files()
        self._held |= {*self._there.items()}
        hidden: list[tuple[Path, Path]] = []
        if trouble == "not_mounted":
            hidden = [(self.source, self._folder / "hidden")]
        elif trouble == "part_missing":
            one = self.chance.choice(sorted(path for path in self.source.iterdir()))
            hidden = [(one, self._folder / "hidden")]
        for path, to in hidden:
            path.rename(to)
        if trouble == "not_mounted":
            self.source.mkdir()
        self._down = {"denied": 1.0, "timeouts": 0.4, "lost_workers": 0.4}.get(trouble, 0.0)
        self._kind = {"denied": "access_denied", "lost_workers": "internal"}.get(trouble, "timeout")
        budget = self.chance.randint(0, 6) if trouble == "cut" else None
        self.done = []
        for attempt in range(kills + 1):
            self._budget, self._late = budget, False
            dies = attempt < kills or last_killed
            asked = self._asked() if self.redo else {}
            with life(self.chance.randint(1, 50) if dies else float("inf")) as process:
                self._run(self.redo)
            self.events["killed runs"] += process.killed
            if process.killed and self.chance.random() < 0.3:
                self._nothing_lost(self.exported())
        if not process.killed:
            if self.redo is not None:
                self.redo = None
                self.asked |= asked
                self.events["redo begun"] += 1
            self.check(ended=not trouble, whole=not hidden)
        for path, to in reversed(hidden):
            if path.exists():
                path.rmdir()
            to.rename(path)

    def _asked(self) -> dict[int, int]:
        within = "" if self.redo == "all" else REDO_TONIGHT
        return {
            row["size_bytes"]: self.take for row in self.read("outcomes")
            if within in row["uri"] and row["size_bytes"] not in self.copied
            and self._there.get(self.moved.get(row["uri"], row["uri"])) == row["size_bytes"]
        }  # fmt: skip

    def _run(self, redo: str | None) -> None:
        config = self.config
        try:
            if redo is None and self.chance.random() < self._pages:
                nightly.run(config, local=True, progress=None, timing=QUICK)
                return
            with Lock(OutputStore.of(config.output), new_run_id(), steal=True,
                      timing=QUICK) as lock:  # fmt: skip
                run = driver.CorpusRun(
                    config=config, checkpoint=self._checkpoint, lock=lock, local=True,
                    options=RunOptions(retry=Retry.nightly, redo=redo),
                )  # fmt: skip
                run.start()
                run.process()
                run.finish()
        except EngineError as error:
            if self._down < 1.0 and "failed alike" not in str(error):
                raise

    def _work(
        self, config: RunConfig, packs: Iterable[pa.Table], committer: Committer,
        *, progress: Progress, **_: Any,
    ) -> None:  # fmt: skip
        for pack in packs:
            for file in pack["files"].to_pylist()[0]:
                rows = self._rows(file)
                self.done.append(file["uri"])
                for start in range(0, len(rows), 2):
                    if self._budget is not None:
                        if not self._budget:
                            self._late = True
                            return
                        self._budget -= 1
                    table = results(*rows[start : start + 2])
                    committer(table)
                    progress.set(progress.tally + tally_of(table))

    def _rows(self, file: Mapping[str, Any]) -> list[dict[str, Any]]:
        done = set(file["done_parts"])
        identity = {name: file[name] for name in ("recording_id", "uri", "size_bytes", "etag",
                                                  "metadata", "begun_by")}  # fmt: skip
        digest = digest_of(file["uri"])
        content = self._content(file)
        if content is None or self.chance.random() < self._down:
            kind = "not_found" if content is None else self._kind
            return [failure(min({*range(len(done) + 1)} - done), kind, identity)]
        said = lines_of(content)
        count = 1 + content % 3
        rows = []
        for index in range(count):
            texts = [f"{text} {self.take}" for at, text in said if at == index]
            if broken(content) and index == count - 1:
                rows.append(failure(index, "decode", identity | {"content_digest": digest}))
            else:
                status, last = "ok" if texts else "no_speech", index == count - 1
                rows.append(part("", index, texts=self._said(file, texts), status=status, last=last,
                                 content_digest=digest if last else None, **identity))  # fmt: skip
        return [row for row in rows if row["part"] not in done]

    def _content(self, file: Mapping[str, Any]) -> int | None:
        return int(file["size_bytes"])

    def _said(self, file: Mapping[str, Any], texts: list[str]) -> list[str]:
        return texts

    # What must be true.

    def read(self, table: str) -> list[dict[str, Any]]:
        """Return a table's rows as any Parquet reader finds them, at their present addresses."""
        rows = plain_read(Path(self.store.uri), table)
        moved = {
            row["recording_id"]: row for row in Identities.read(self.store).present().to_pylist()
        }
        digests = {
            (row["recording_id"], row.get("etag")): row["content_digest"]
            for row in rows
            if row.get("content_digest")
        }
        for row in rows:
            move = moved.get(row["recording_id"])
            if move is not None:
                row["uri"] = move["uri"]
                digest = digests.get((row["recording_id"], row.get("etag")))
                if move["etag"] and digest == move["content_digest"]:
                    row["etag"] = move["etag"]
        return rows

    def tables(self) -> dict[str, list[str]]:
        return {name: sorted(map(repr, self.read(name)))
                for name in ("outcomes", "recordings", "segments")}  # fmt: skip

    def exported(self) -> dict[str, Lines]:
        """Return complete recordings as an export has them, also of a killed run.

        Without corrections: they stay where half of their words agree, as those of a year do.
        """
        found = {}
        for each in self._export(Corrections({})):
            texts = (segment.text for segment in each.segments)
            found[each.uri] = tuple(sorted((int(text.split()[1]), text) for text in texts))
        return found

    def _export(self, corrections: Corrections) -> list[Recording]:
        selection = Selection(partial=True)
        with open_selection(self.store, selection) as tables:
            seen = SeenSegments(self.store, tables, corrections)
            return list(recordings(seen, tables, selection))

    def check(self, *, ended: bool, whole: bool) -> None:
        """Compare the tables with the archive.

        Args:
            ended: nothing kept the night from doing all that there was.
            whole: all of the archive was listed.
        """
        outcomes, rows, segments = map(self.read, ("outcomes", "recordings", "segments"))
        identities = Identities.read(self.store)
        # A failure of what is done again stands beside what it came to before.
        unique([(row["uri"], row["part"], row["etag"], row["status"] == "failed")
                for row in outcomes])  # fmt: skip
        unique([row["uri"] for row in rows])
        unique([(row["uri"], row["part"], row["segment"]) for row in segments])
        for row in (*outcomes, *rows, *segments):
            assert row["recording_id"] == identities.id_of(row["uri"])
        files, listed = self.files(), self.listed()
        self._stays_away(outcomes, segments)
        said: dict[str, list[tuple[int, str]]] = {row["uri"]: [] for row in rows}
        for row in segments:
            said.setdefault(row["uri"], []).append((row["part"], row["text"]))
        complete = {row["uri"]: row for row in rows}
        for uri, row in complete.items():
            # What another source listed, here of a project by its old name, is not gone.
            if Path(uri).is_relative_to(self.source):
                assert (row["gone_since"] is not None) == (uri not in listed), uri
            assert row["segments"] == len(said[uri]), uri
        good = {uri: tuple(sorted(said[uri])) for uri, row in complete.items()
                if row["status"] != "failed"}  # fmt: skip
        for lines in good.values():
            assert len({text.split()[0] for _, text in lines}) <= 1, "of one content"
        self._nothing_lost(good)
        if whole:
            self._moves_followed(good)
            self.moved, self.swapped, self.recognizable = {}, {}, set()
        if ended and whole:
            for uri, content in files.items():
                if content not in self.away:
                    self._is_done(uri, content, complete, good, outcomes)
            self._corrections_apply(segments)
        self.good, self._held = good, set()
        self._sizes = {uri: complete[uri]["size_bytes"] for uri in good}
        self._versions = {uri: complete[uri]["etag"] for uri in good}
        self.last_listed |= dict.fromkeys(listed, self._clock.ahead_s)

    def _stays_away(self, outcomes: Iterable[Mapping[str, Any]], segments: Any) -> None:
        contents = {row["size_bytes"] for row in outcomes}
        contents |= {int(row["text"].split()[0]) for row in segments}
        assert not contents & self.away.keys(), "what is forgotten is nowhere"

    def _nothing_lost(self, now: Mapping[str, Lines]) -> None:
        for uri, before in self.good.items():
            # Files that swapped their names, or are copies, may have each other's rows; those of
            # one that was renamed again may be where it was in a killed night.
            twins = {at for at, held in self._held if held == self._sizes[uri]}
            places = {uri, *twins}
            for moves in (self.swapped, self.moved, self.swapped):
                places |= {moves[place] for place in places if place in moves}
            # A recording that people wrote about waits where another sound came to its address.
            places |= {at for at in now if at.rpartition("#")[0] in places}
            assert any(
                place in now and (
                    (plain(now[place]) == plain(before) and takes(now[place]) >= takes(before))
                    or any(at == place and plain(now[place]) == lines_of(held)
                           for at, held in self._held if not broken(held))
                )
                for place in places
            ), (uri, before, {place: now.get(place) for place in places})  # fmt: skip

    def _moves_followed(self, good: Mapping[str, Lines]) -> None:
        for old in self.recognizable:
            new = self.moved[old]
            if Path(new).stat().st_size in self.copied:
                continue
            assert old not in good, f"{old} moved to {new} {Path(new).stat().st_size}"
            assert new in good, f"{old} moved to {new}"
            if not self.asked and new in self.done:
                assert not self.done.count(new), f"{old} moved to {new}, and was done again"
            self.events["moves that were followed"] += 1

    def _is_done(
        self, uri: str, content: int, complete: Mapping[str, Any], good: Mapping[str, Lines],
        outcomes: Iterable[Mapping[str, Any]],
    ) -> None:  # fmt: skip
        if broken(content):
            failed = [row["size_bytes"] for row in outcomes
                      if row["uri"] == uri and row["status"] == "failed"]  # fmt: skip
            if self.is_of_earlier(complete[uri], content):  # some of that may have failed as well
                failed = [size for size in failed if size != complete[uri]["size_bytes"]]
            assert failed in ([content], [None]), uri
            self.events["texts kept beside a failure"] += uri in good
            return
        assert uri in good, (uri, content, complete.get(uri))
        assert complete[uri]["size_bytes"] in (content, None)
        assert plain(good[uri]) == lines_of(content)
        assert complete[uri]["parts"] == 1 + content % 3
        assert not good[uri] or takes(good[uri]) >= self.asked.get(content, 0), (
            uri, good[uri], self.asked[content])  # fmt: skip

    @staticmethod
    def is_of_earlier(row: Mapping[str, Any], content: int) -> bool:
        """Tell whether a row of recordings is of what a file held before."""
        return row["size_bytes"] not in (content, None)

    def _corrections_apply(self, segments: Iterable[Mapping[str, Any]]) -> None:
        if not self.corrected or self.chance.random() > 0.2:
            return
        there = {row["text"] for row in segments}
        corrected = self._export(Corrections.load(self.store))
        exported = {segment.text for each in corrected for segment in each.segments}
        for text, words in self.corrected.values():
            if text in there:
                assert words in exported, words
                self.events["corrections that apply"] += 1


class _Held:
    """An output folder that a command has locked."""

    def __init__(self, store: OutputStore) -> None:
        self._lock = Lock(store, new_run_id(), steal=True, timing=QUICK)

    def __enter__(self) -> OutputStore:
        store = self._lock.__enter__().store
        return store

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)


def takes(said: Lines) -> int:
    """Return the first take of lines."""
    return min((int(text.rpartition(" ")[2]) for _, text in said), default=0)


def unique(keys: list[Any]) -> None:
    assert len(keys) == len(set(keys)), [key for key, count in Counter(keys).items() if count > 1]


def failure(index: int, kind: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    return part("", index, texts=None, status="failed", error_stage="extract", error_kind=kind,
                error_message=f"{kind}: scripted", retryable=kind != "decode",
                **identity)  # fmt: skip


DAYS: tuple[str, ...] = (
    "add", "replace", "touch", "copy", "delete", "come_back", "rename_file", "rename_folder",
    "rename_project", "swap", "correct", "forget", "allow", "prune", "ask_again",
)  # fmt: skip
TROUBLES = ("denied", "timeouts", "lost_workers", "not_mounted", "part_missing", "cut")
UPGRADES: Mapping[float, str] = {
    0.3: "upgrade_with_a_new_setting", 0.6: "upgrade_with_another_default",
}  # fmt: skip


def spend(
    year: Year, nights: int, *, days: tuple[str, ...] = DAYS, each_day: int = 3,
    kills: tuple[int, ...] = (0, 0, 0, 1, 2),
    after: Callable[[int], object] = lambda number: None,
) -> None:  # fmt: skip
    """Let nights pass, in which each kind of event comes again and again, in any order."""
    chance = year.chance
    upgrades = {round(nights * share): name for share, name in UPGRADES.items()}
    events, troubles = shuffled(days, chance), shuffled(TROUBLES, chance)
    year.night()
    for number in range(1, nights):
        if number in upgrades:
            year.day(upgrades[number])
        for _ in range(chance.randint(1, each_day)):
            year.day(next(events))
        trouble = next(troubles) if chance.random() < 0.5 else ""
        last_killed = any(kills) and chance.random() < 0.1
        year.night(trouble, kills=chance.choice(kills), last_killed=last_killed)
        after(number)


def shuffled(names: tuple[str, ...], chance: random.Random) -> Iterator[str]:
    """Yield all names again and again, each time in another order."""
    while True:
        yield from chance.sample(names, len(names))
