"""Seeded mistakes in what keeps rows exact: each must make a test fail.

A mistake replaces one text of one file in a copy of the package, and the tests of that part run
against the copy. A survivor names a behavior that no test holds; a row whose text has changed fails
too, so that the list stays true.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 540  # a mistake that hangs its tests is not caught by one of them


class Mutation(NamedTuple):
    """One mistake, and the tests of which one must fail, below the folder of tests."""

    file: str
    old: str
    new: str
    tests: str


MUTATIONS = {
    # Commit
    "a batch that no table takes is refused as one row": Mutation(
        "runtime/commit.py",
        "if results.num_rows > 1:",
        "if results.num_rows < 1:",
        "runtime/test_local.py::test_a_row_that_cannot_be_committed_is_one_failure",
    ),
    "halves leave out the row between them": Mutation(
        "runtime/commit.py",
        "self(results.slice(half))",
        "self(results.slice(half + 1))",
        "runtime/test_local.py::test_a_row_that_cannot_be_committed_is_one_failure",
    ),
    "a failing store fails the recordings": Mutation(
        "runtime/commit.py",
        "except CorpusAsrError:",
        "except KeyboardInterrupt:",
        "runtime/test_local.py::test_a_store_that_fails_once_makes_no_failure_of_a_row",
    ),
    "a refused row keeps its segments": Mutation(
        "runtime/commit.py",
        '"segments_written": 0, "segments": []}',
        '"segments_written": 0, "segments": results["segments"][0].as_py()}',
        "runtime/test_local.py::test_a_row_that_cannot_be_committed_is_one_failure",
    ),
    "each part counts as a recording": Mutation(
        "runtime/commit.py",
        "files=last.num_rows",
        "files=results.num_rows",
        "runtime/test_local.py::test_every_part_is_committed_and_counted",
    ),
    # Ledger
    "the oldest failure counts, not the newest": Mutation(
        "storage/run_state/ledger.py",
        "np.where(failed, -1, 1)",
        "np.where(failed, 1, 1)",
        "storage/test_ledger.py::test_the_first_success_counts_else_the_last_failure",
    ),
    "the newest success counts, not the oldest": Mutation(
        "storage/run_state/ledger.py",
        "np.where(failed, -1, 1)",
        "np.where(failed, -1, -1)",
        "storage/test_ledger.py::test_the_first_success_counts_else_the_last_failure",
    ),
    "a failure counts before a success": Mutation(
        "storage/run_state/ledger.py",
        "keys[1] * age, failed, keys[2]",
        "keys[1] * age, ~failed, keys[2]",
        "storage/test_ledger.py::test_an_end_that_failed_may_turn_out_to_be_none",
    ),
    "a recording with a hole is done": Mutation(
        "storage/run_state/ledger.py",
        "(end < nowhere) & (until_end == end + 1)",
        "end < nowhere",
        "storage/test_ledger.py::test_covered_recordings_are_dropped_and_half_done_one"
        "s_keep_their_parts",
    ),
    "a recording without its last part is done": Mutation(
        "storage/run_state/ledger.py",
        "(end < nowhere) & (until_end == end + 1)",
        "until_end > 0",
        "storage/test_ledger.py::test_covered_recordings_are_dropped_and_half_done_one"
        "s_keep_their_parts",
    ),
    "an unknown version fits none": Mutation(
        "storage/run_state/ledger.py",
        "pc.fill_null(pc.equal(left, right), True)",
        "pc.fill_null(pc.equal(left, right), False)",
        "storage/test_ledger.py::test_only_the_present_version_is_covered_and_unknown_"
        "ones_fit_any",
    ),
    "a changed size is the same version": Mutation(
        "storage/run_state/ledger.py",
        '        same &= _same(size, files["size_bytes"])\n',
        "",
        "storage/test_ledger.py::test_only_the_present_version_is_covered_and_unknown_"
        "ones_fit_any",
    ),
    "rows of replaced content count": Mutation(
        "storage/run_state/ledger.py",
        "fresh[versions] = self._versions.fit(versions, batch.take(pa.array(files)))",
        "fresh[versions] = True",
        "storage/test_versions.py::test_a_version_that_failed_leaves_the_text_before_it"
        "_and_is_known",
    ),
    "what is no longer listed is dropped": Mutation(
        "storage/run_state/ledger.py",
        "fresh |= ~listed[owner] & self._versions.fit_newest()",
        "owner = owner[fresh]; every = np.flatnonzero(fresh)",
        "storage/test_ledger.py::test_finishing_says_what_there_is",
    ),
    "the listed version counts, whatever it holds": Mutation(
        "storage/run_state/ledger.py",
        "np.lexsort((newest, wanted, rank, owners))",
        "np.lexsort((newest, rank, wanted, owners))",
        "storage/test_versions.py::test_a_version_that_failed_leaves_the_text_before_it"
        "_and_is_known",
    ),
    "a version with a failed part is as good as one without": Mutation(
        "storage/run_state/ledger.py",
        "np.where(complete & ~failed, _Rank.good, partly)",
        "np.where(complete, _Rank.good, partly)",
        "storage/test_versions.py::test_a_version_that_failed_leaves_the_text_before_it"
        "_and_is_known",
    ),
    "the failure of a newer version is dropped": Mutation(
        "storage/run_state/ledger.py",
        "np.where(self._failed[rows], Place.tables, Place.pending)",
        "np.where(self._failed[rows], Place.nowhere, Place.pending)",
        "storage/test_versions.py::test_a_version_that_failed_leaves_the_text_before_it"
        "_and_is_known",
    ),
    "a half-done version lies beside the one that counts": Mutation(
        "storage/run_state/ledger.py",
        "np.where(self._failed[rows], Place.tables, Place.pending)",
        "Place.tables",
        "storage/test_versions.py::test_a_half_done_version_is_hidden_and_gone_on_with",
    ),
    "commits without their segments count": Mutation(
        "storage/run_state/ledger.py",
        'table = table.filter(pc.invert(pc.is_in(table["object"], value_set=gone)))',
        "pass",
        "storage/test_ledger.py::test_outcomes_whose_segments_are_gone_do_not_count",
    ),
    "a listing that lags loses commits": Mutation(
        "storage/run_state/ledger.py",
        "store.missing(set().union(*promised.values()) - present)",
        "set().union(*promised.values()) - present",
        "storage/test_ledger.py::test_what_a_listing_does_not_show_yet_is_neither_lost_nor_removed",
    ),
    "failures that would come again are retried": Mutation(
        "storage/run_state/ledger.py",
        "self._failed[rows] & tried[origins]",
        "self._failed[rows]",
        "storage/test_ledger.py::test_what_is_done_again",
    ),
    "recordings left alone are retried": Mutation(
        "storage/run_state/ledger.py",
        " & (always[origins] | ~spared)",
        "",
        "storage/test_ledger.py::test_what_is_to_be_left_alone_is_retried_with_new_content_only",
    ),
    "the place of an earlier end stays taken": Mutation(
        "storage/run_state/ledger.py",
        "half = np.isin(files, left) & ~ended",
        "half = np.isin(files, left)",
        "storage/test_ledger.py::test_a_failure_that_came_before_the_parts_in_front_of"
        "_it_may_come_again",
    ),
    "one run's failure counts as two tries": Mutation(
        "storage/run_state/ledger.py",
        "before.tries + (before.run_id != self.run_id)",
        "before.tries + 1",
        "storage/test_ledger.py::test_each_run_that_failed_on_a_recording_counts_once",
    ),
    # Lock
    "a process of another machine is dead here": Mutation(
        "storage/run_state/lock.py",
        " or self.machine != _machine():",
        ":",
        "storage/test_lock.py::test_what_cannot_be_known_is_not_called_dead",
    ),
    "a number that was given again is alive": Mutation(
        "storage/run_state/lock.py",
        "return _started_ticks(self.pid) != self.started_ticks",
        "return False",
        "storage/test_lock.py::test_a_pid_that_is_used_again_is_not_taken_for_its_first_owner",
    ),
    "a process that nobody waited for is alive": Mutation(
        "storage/run_state/lock.py",
        "return None if fields[0] in _DEAD_STATES else fields[19]",
        "return fields[19]",
        "storage/test_lock.py::test_the_lock_of_a_dead_process_of_this_machine_is_take"
        "n_over_at_once",
    ),
    "a lock is taken over without being asked": Mutation(
        "storage/run_state/lock.py",
        "if not self._steal:",
        "if False:",
        "storage/test_lock.py::test_a_second_run_is_refused_at_once_and_told_everything",
    ),
    "a heartbeat at the last moment passes for another run": Mutation(
        "storage/run_state/lock.py",
        "if holder is not None and replace(self.key, token=holder.token).is_of(found):",
        "if False:",
        "storage/test_lock.py::test_a_heartbeat_at_the_last_moment_keeps_the_lock",
    ),
    "a lock is taken over at the first look": Mutation(
        "storage/run_state/lock.py",
        "            self._watch(content)\n",
        "",
        "storage/test_lock.py::test_a_living_holder_is_not_robbed_even_if_its_clock_stands_still",
    ),
    "a heartbeat leaves the lock as it was": Mutation(
        "storage/run_state/lock.py",
        "beats=self._holder.beats + 1, heartbeat_at=_now()",
        "beats=self._holder.beats",
        "storage/test_lock.py::test_a_living_holder_is_not_robbed_even_if_its_clock_stands_still",
    ),
    "the last of two writers believes the first": Mutation(
        "storage/run_state/lock.py",
        "return self.key.is_of(self._peek())",
        "return True",
        "storage/test_lock.py::test_a_store_that_ignores_conditions_still_has_one_winner",
    ),
    "any lock is this run's": Mutation(
        "storage/run_state/lock.py",
        "return holder is not None and holder.token == self.token",
        "return holder is not None",
        "storage/test_lock.py::test_a_robbed_holder_commits_no_more_and_leaves_the_new_lock_alone",
    ),
    "the lock of another run is removed": Mutation(
        "storage/run_state/lock.py",
        "if self.key.is_of(filesystem.peek(self._uri, self._beat_options)):",
        "if True:",
        "storage/test_lock.py::test_a_robbed_holder_commits_no_more_and_leaves_the_new_lock_alone",
    ),
    "what a frozen run still puts counts": Mutation(
        "storage/run_state/lock.py",
        "self.store.close_run(robbed.run_id)",
        "pass",
        "storage/test_taken_over.py::test_a_commit_counts_if_it_was_there_when_the_lock_was_taken",
    ),
    "a run writes without looking at its lock": Mutation(
        "storage/run_state/lock.py",
        "self.store = self._store.held(self.key)",
        "self.store = self._store",
        "storage/test_lock.py::test_a_robbed_holder_commits_no_more_and_leaves_the_new_lock_alone",
    ),
    # Plan
    "what is in use is cleared away": Mutation(
        "storage/run_state/plan.py",
        "if _plan_of(name) < finished:",
        "if True:",
        "storage/test_plan.py::test_only_a_success_removes_plans_and_raw_addresses",
    ),
    "a pack takes any number of files": Mutation(
        "storage/run_state/plan.py",
        " or held == max_files):",
        "):",
        "storage/test_plan.py::test_tiny_files_travel_in_packs_of_hundreds_once_every_"
        "worker_has_some",
    ),
    "a pack takes any number of bytes": Mutation(
        "storage/run_state/plan.py",
        "filled + weight > pack_bytes or held",
        "held",
        "storage/test_plan.py::test_packs_hold_every_file_once_and_are_bounded",
    ),
    "the smallest come first": Mutation(
        "storage/run_state/plan.py",
        "np.lexsort((ids, -sizes, ~unknown, retried))",
        "np.lexsort((ids, sizes, ~unknown, retried))",
        "storage/test_plan.py::test_long_files_come_first_and_alone",
    ),
    "a plan of a slow clock is older than the last": Mutation(
        "storage/run_state/plan.py",
        "max(time.time_ns(), newest_ns + 1)",
        "time.time_ns()",
        "storage/test_clocks.py::test_plans_of_a_clock_that_was_ahead_are_retired_as_well",
    ),
    "neighbors of the output folder are not listed": Mutation(
        "storage/run_state/plan.py",
        'store.uri + "/")',
        "store.uri)",
        "storage/test_plan.py::test_output_inside_the_source_is_not_transcribed",
    ),
    "the first row of a shard is in none": Mutation(
        "storage/run_state/plan.py",
        "within = (ours >= start)",
        "within = (ours > start)",
        "storage/test_plan.py::test_shards_do_not_change_the_order",
    ),
    "signed addresses stay in the listing": Mutation(
        "storage/run_state/plan.py",
        "safe = without_credentials(files)",
        "safe = files",
        "storage/test_plan.py::test_only_a_success_removes_plans_and_raw_addresses",
    ),
    # Finish
    "a finish leaves the mark of the last one": Mutation(
        "storage/run_state/finish.py",
        "    store.remove(SUCCESS_NAME)\n",
        "",
        "storage/test_ledger.py::test_a_folder_at_work_is_not_marked_as_finished",
    ),
    "a run that was cut short is complete": Mutation(
        "storage/run_state/finish.py",
        "if counts.remaining == 0:",
        "if True:",
        "storage/test_ledger.py::test_a_folder_at_work_is_not_marked_as_finished",
    ),
    "rows lost of the listing are not missed": Mutation(
        "storage/run_state/finish.py",
        "num_listed = max(num_listed, resolution.num_listed)",
        "num_listed = resolution.num_listed",
        "storage/test_ledger.py::test_a_listing_that_lost_rows_is_no_success",
    ),
    "second commits stay": Mutation(
        "storage/run_state/finish.py",
        "    keep_only(store, resolution.places)\n",
        "",
        "storage/test_ledger.py::test_the_first_success_counts_else_the_last_failure",
    ),
    "words of a text that two parts claim stay in both": Mutation(
        "runtime/known_texts.py",
        "if not len(contested):",
        "if True:",
        "runtime/test_known_texts.py::test_the_part_that_fits_better_has_the_words",
    ),
    "a part that loses words keeps the count of its segments": Mutation(
        "runtime/known_texts.py",
        '{"segments_written": len(left)}',
        '{"segments_written": len(own)}',
        "runtime/test_known_texts.py::test_the_part_that_fits_better_has_the_words",
    ),
    "the first commit of a part that loses words stays": Mutation(
        "runtime/known_texts.py",
        "        keep_only(store, {name: ",
        "        sorted({name: ",
        "runtime/test_known_texts.py::test_the_part_that_fits_better_has_the_words",
    ),
    "the part that fits worse has the words": Mutation(
        "transcription/joined_text.py",
        "max(mean, 1e-6)",
        "1.01 - mean",
        "runtime/test_known_texts.py::test_the_part_that_fits_better_has_the_words",
    ),
    "channels add up to a longer recording": Mutation(
        "storage/run_state/finish.py",
        'pc.divide(grouped["duration_s_sum"], num_channels)',
        'grouped["duration_s_sum"]',
        "storage/test_ledger.py::test_channels_apart_cover_the_same_time",
    ),
    "a merged commit sorts after younger ones": Mutation(
        "storage/run_state/finish.py",
        "stem=store.stem(max(0, time_ns_of(names[0]) - 1))",
        "stem=store.stem()",
        "storage/test_finish.py::test_killed_after_any_operation_the_next_finish_ends_"
        "the_same "
        "storage/test_finish.py::test_a_complete_finish_merges_what_was_written_in_small_pieces",
    ),
    "segments of other parts are merged": Mutation(
        "storage/run_state/finish.py",
        "if not theirs.equals(",
        "if False and not theirs.equals(",
        "storage/test_finish.py::test_segments_that_are_not_what_the_outcomes_say_are_not_merged",
    ),
    "missing segments are merged": Mutation(
        "storage/run_state/finish.py",
        "if read.get(name, 0) != count:",
        "if read.get(name, 0) > count:",
        "storage/test_finish.py::test_segments_that_are_not_what_the_outcomes_say_are_not_merged",
    ),
    "commits go before their replacement is there": Mutation(
        "storage/run_state/finish.py",
        "    store.remove_all(outcomes_names)\n    store.remove_all(segments_names)\n",
        "    store.remove_all(segments_names)\n    store.remove_all(outcomes_names)\n",
        "storage/test_finish.py::test_killed_after_any_operation_the_next_finish_ends_the_same",
    ),
    "the recordings table goes before the next": Mutation(
        "storage/run_state/finish.py",
        "    old = store.names(RECORDINGS_FOLDER)\n",
        "    old = store.names(RECORDINGS_FOLDER)\n    store.remove_all(old)\n",
        "storage/test_finish.py::test_a_reader_misses_no_recording_while_the_table_is_replaced",
    ),
    "segments that the listing hides are removed": Mutation(
        "storage/run_state/finish.py",
        "leftovers = {outcomes[name] for name in store.missing(outcomes)}",
        "leftovers = {*outcomes.values()}",
        "storage/test_ledger.py::test_what_a_listing_does_not_show_yet_is_neither_lost_nor_removed",
    ),
    "rows of the last chunk are lost": Mutation(
        "storage/run_state/finish.py",
        "np.searchsorted(theirs, [*edges, len(places)])",
        "np.searchsorted(theirs, [*edges, len(places) - 1])",
        "storage/test_finish.py::test_any_rows_come_out_sorted_and_complete",
    ),
    # Tables
    "outcomes are put before their segments": Mutation(
        "storage/run_state/tables.py",
        "            self.write_bytes(segments_name, encode_parquet(rows.schema, segments))\n",
        "            late = encode_parquet(rows.schema, segments)\n"
        "            self.write_table(f'{OUTCOMES_FOLDER}/{stem}{SUFFIX}', outcomes)\n"
        "            self.write_bytes(segments_name, late)\n",
        "storage/test_ledger.py::test_a_retry_killed_anywhere_ends_exact "
        "storage/test_taken_over.py::test_a_commit_counts_if_it_was_there_when_the_lock_was_taken",
    ),
    "labels are not counted": Mutation(
        "storage/run_state/tables.py",
        "pc.add(segments, labels)",
        "segments",
        "storage/test_tables.py::test_many_small_commits_of_labels_become_one",
    ),
    "rows without an identity are committed": Mutation(
        "storage/run_state/tables.py",
        "if results[name].null_count:",
        "if False:",
        "storage/test_tables.py::test_rows_that_cannot_be_accounted_for_are_refused",
    ),
    "passwords are written": Mutation(
        "storage/run_state/tables.py",
        "results = without_credentials(results)",
        "pass",
        "storage/test_tables.py::test_no_column_keeps_credentials",
    ),
    "the lock is not looked at before a put": Mutation(
        "storage/run_state/tables.py",
        ", before=self.check)",
        ")",
        "storage/test_taken_over.py::test_a_put_that_is_tried_again_looks_at_the_lock_again",
    ),
    "all tables of a robbed run are late": Mutation(
        "storage/run_state/tables.py",
        "return put is not None and name not in put",
        "return put is not None",
        "storage/test_taken_over.py::test_a_commit_counts_if_it_was_there_when_the_lock_was_taken",
    ),
    "a commit of a slow clock sorts before older ones": Mutation(
        "storage/run_state/tables.py",
        "max(time.time_ns(), self._newest_ns + 1)",
        "time.time_ns()",
        "storage/test_clocks.py::test_of_a_recording_no_longer_listed_the_last_version_stays",
    ),
    "other models get the calibration of one": Mutation(
        "storage/run_state/tables.py",
        ' and row["model_revision"] == model_revision',
        "",
        "pipelines/test_calibrate_model.py::test_rows_of_other_weights_and_without_evidence_keep_their_confidence",
    ),
    "outcomes may name any object": Mutation(
        "storage/run_state/tables.py",
        "if not (table_of(named)",
        "if False and not (table_of(named)",
        "storage/test_host_allowlist.py::test_outcomes_cannot_name_anything_but_segments",
    ),
    "ranges start one row late": Mutation(
        "storage/parquet.py",
        "range(start - first, stop - first)",
        "range(start - first + 1, stop - first)",
        "view/test_catalogue.py::test_parts_in_many_objects_and_row_groups_are_one_transcript",
    ),
    # Times of a part within its recording
    "frames count from the recording": Mutation(
        "transcription/windows.py",
        "return self.start_s + frame / FRAMES_PER_SECOND",
        "return frame / FRAMES_PER_SECOND",
        "transcription/test_windows.py::test_times_are_the_recording_s",
    ),
    "the part's start is not taken off": Mutation(
        "transcription/windows.py",
        "round((time_s - self.start_s) * FRAMES_PER_SECOND)",
        "round(time_s * FRAMES_PER_SECOND)",
        "transcription/test_windows.py::test_times_are_the_recording_s",
    ),
    "a part ends where it starts": Mutation(
        "transcription/windows.py",
        "return self.start_s + self.num_samples / SAMPLE_RATE_HZ",
        "return self.num_samples / SAMPLE_RATE_HZ",
        "transcription/test_windows.py::test_times_are_the_recording_s",
    ),
    "segments count from their window": Mutation(
        "transcription/whisper.py",
        "start_s=start_s + span.start_s",
        "start_s=span.start_s",
        "transcription/test_long_form.py::test_long_silence_is_jumped_over",
    ),
    "words count from their window": Mutation(
        "transcription/words.py",
        "round(audio.start_s + word.start_s, 2)",
        "round(word.start_s, 2)",
        "transcription/test_words.py::test_words_begin_where_they_are_attended_to_and_"
        "segments_take_their_times",
    ),
    "a window goes on past unfinished text": Mutation(
        "transcription/long_form.py",
        "    if closed:\n        return spans, content_frames\n",
        "    if spans:\n        return spans, content_frames\n",
        "transcription/test_long_form.py::test_decoding_goes_on_at_the_last_timestamp_if_unfinished_text_follows_it",
    ),
    "rows of later parts start at zero": Mutation(
        "stages/extract.py",
        "start_s = part.start_sample / SAMPLE_RATE_HZ",
        "start_s = 0.0",
        "stages/test_extract.py::test_every_part_is_one_table_and_the_last_is_marked",
    ),
    "the next part starts where this one did": Mutation(
        "audio/parts.py",
        "self._start_sample += num_samples",
        "self._start_sample += 0",
        "audio/test_parts.py::test_parts_joined_are_the_recording_whatever_the_chunks",
    ),
    "pieces of a part count from it": Mutation(
        "stages/parts.py",
        'row["part_start_s"] + first / SAMPLE_RATE_HZ',
        "first / SAMPLE_RATE_HZ",
        "stages/test_parts.py::test_a_part_is_cut_into_whole_pieces_in_which_somebody_speaks",
    ),
}  # fmt: skip


def copied(source: str, target: str) -> None:
    """Copy a file with its time, so that what Python has compiled stays valid; link large ones."""
    if os.path.getsize(source) > 1_000_000:
        os.symlink(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package and its tests, which are found there first."""
    folder = tmp_path_factory.mktemp("mutated")
    for path in ROOT.iterdir():
        if path.name in ("corpus_asr", "tests"):
            shutil.copytree(path, folder / path.name, copy_function=copied)
        elif not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    return folder


def outcome_of(folder: Path, tests: str) -> tuple[int, str]:
    """Run tests against the package in a folder; return the exit status and what was printed."""
    names = dict.fromkeys(f"tests/{name}" for name in tests.split())
    found = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider",
            "-m", "not (ray or slow or gpu or network or notebook)", *names,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )  # fmt: skip
    return found.returncode, found.stdout + found.stderr


@contextlib.contextmanager
def mutated(folder: Path, mutation: Mutation) -> Iterator[None]:
    """Put a mistake into the copy, and take it out again."""
    path = folder / "corpus_asr" / mutation.file
    source = path.read_text()
    assert source.count(mutation.old) == 1, f"{mutation.file}: {mutation.old!r} is not there once"
    try:
        rewrite(path, source.replace(mutation.old, mutation.new))
        yield
    finally:
        rewrite(path, source)


def rewrite(path: Path, source: str) -> None:
    # What is compiled is believed if the source has the same second and size.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
    path.write_text(source)


def test_the_copy_is_tested_and_passes(package: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import corpus_asr; print(corpus_asr.__file__)"],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(package)
    status, said = outcome_of(package, " ".join(each.tests for each in MUTATIONS.values()))
    assert status == 0, said


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_caught(package: Path, name: str) -> None:
    mutation = MUTATIONS[name]
    with mutated(package, mutation):
        status, said = outcome_of(package, mutation.tests)
    caught = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    assert status == 1, f"{name}: survived {mutation.tests}\n{said[-2000:]}"
    assert caught is not None, said
    print(f"{name}: {caught[1]}")  # noqa: T201 - with -rP, the list
