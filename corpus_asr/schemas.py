"""Arrow schemas of all tables: the interface between stages, and to readers of the output.

Each field has `doc` and, if applicable, `unit` in its metadata. Within one `SCHEMA_VERSION` columns
are only added. FILES, PACKS, PARTS and RESULTS are exchanged between stages; SEGMENTS (of a
transcription) or LABELS (of a classification), OUTCOMES and RECORDINGS are the output of a run;
SELECTION and EXAMPLES are the contents of a dataset.
"""

import pyarrow as pa

SCHEMA_VERSION = "1"


def _field(name: str, kind: pa.DataType, doc: str, *, unit: str | None = None) -> pa.Field:
    metadata = {"doc": doc} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, metadata=metadata)


def _schema(table: str, *fields: pa.Field) -> pa.Schema:
    metadata = {"corpus_asr.table": table, "corpus_asr.schema_version": SCHEMA_VERSION}
    return pa.schema(list(fields), metadata=metadata)


_RECORDING_ID = _field("recording_id", pa.string(), "16-digit name of the recording: hash of the "
                       "URI where it was first seen")  # fmt: skip
_URI = _field("uri", pa.string(), "URI of the recording: where it is in recordings, where it "
              "was transcribed elsewhere")  # fmt: skip
_SIZE = _field("size_bytes", pa.int64(), "object size when listed; null where unknown", unit="byte")
_ETAG = _field("etag", pa.string(), "content version when listed: ETag, or size and mtime")
_DIGEST = _field("content_digest", pa.string(), "hash of the packets of all audio tracks, by which "
                 "a sound is recognized; null where they could not be read to the end, and "
                 "in parts before the last")  # fmt: skip
_BEGUN_BY = _field("begun_by", pa.string(), "the run that began this attempt at the recording; "
                   "rows of one attempt are of one sound and make one recording")  # fmt: skip
_METADATA = _field("metadata", pa.string(), "extra manifest columns as a JSON object, or null: in "
                   "recordings the newest, elsewhere those of the run")  # fmt: skip
_PART = _field("part", pa.int32(), "index of the part within its recording, from 0")
_LAST = _field("last_part", pa.bool_(), "whether this is the recording's last part")
_CHANNEL = _field(
    "channel",
    pa.int32(),
    "number of the channel transcribed separately, from 0, or of the track, from 1; null when all "
    "is mixed to mono",
)
_PART_START = _field("part_start_s", pa.float64(), "start of the part", unit="second")
_PART_END = _field("part_end_s", pa.float64(), "end of the part", unit="second")
_STATUS = _field("status", pa.string(), "ok, no_speech or failed")
_ERRORS = (
    _field("error_stage", pa.string(), "stage that failed: extract or transcribe"),
    _field("error_kind", pa.string(), "short stable name of the failure"),
    _field("error_message", pa.string(), "what happened and what to do"),
    _field(
        "retryable",
        pa.bool_(),
        "whether a later run may do better with the same file; null unless failed",
    ),
)
_TRACK = _field(
    "audio_track",
    pa.int32(),
    "number of the audio track that was transcribed, from 1; null where there is one, and of a "
    "recording of which each was: there it is the channel",
)
_AUDIO = (
    _field("codec", pa.string(), "audio codec as ffmpeg names it"),
    _field("sample_rate_hz", pa.int32(), "rate of the source audio", unit="hertz"),
    _field("channels", pa.int32(), "channels of the source audio"),
    _field("header_duration_s", pa.float64(), "what the container claims", unit="second"),
    _field("decode_errors", pa.int32(), "packets skipped so far because they were broken"),
    _field(
        "time_corrections",
        pa.int32(),
        "gaps filled, overlaps cut, damaged time stamps and wrong lengths found so far",
    ),
    _field(
        "clock_restarts",
        pa.int32(),
        "of these, clocks that began again; a jump into such a file may land elsewhere",
    ),
    _TRACK,
    _field(
        "audio_tracks",
        pa.list_(pa.string()),
        "language and title of each audio track, as far as the file says; null where there is one",
    ),
)
_SPANS = pa.list_(pa.struct([pa.field("start_s", pa.float64()), pa.field("end_s", pa.float64())]))

FILES = _schema("files", _RECORDING_ID, _URI, _SIZE, _ETAG, _METADATA)

FILE_COLUMNS = (*FILES.names, _BEGUN_BY.name)
"""What each row of a file's parts carries of it."""

PACK_FILE = pa.struct(
    [
        *FILES,
        _BEGUN_BY.with_metadata({"doc": "run whose attempt is continued; null: a new attempt"}),
        pa.field("done_parts", pa.list_(pa.int32()), metadata={"doc": "parts to leave out"}),
    ]
)
PACKS = _schema(
    "packs",
    _field("pack_id", pa.int64(), "position in the plan, largest first"),
    _field("pack_bytes", pa.int64(), "sum of the files' sizes", unit="byte"),
    _field("files", pa.list_(PACK_FILE), "the recordings of this pack"),
)

_VOICES = (
    _field("voice_spans", _SPANS, "windows of speech whose voices are known, in recording time; "
           "null where speakers were not looked for"),
    _field("voices", pa.binary(), "embedding of each window, one after the other, in halves of "
           "little-endian order; to compare within one model"),
    _field("overlap_spans", _SPANS, "where two speak at once, in recording time; null where none "
           "was found, or none was looked for"),
)  # fmt: skip

_FINGERPRINT = _field(
    "fingerprint",
    pa.binary(),
    "acoustic fingerprint of the part, 8 words a second of 4 bytes in little-endian order; null "
    "without `fingerprint` in `extract.measures`",
)
_SOUND = (
    _field("level_dbfs", pa.float32(), "mean level of the sound, in dB of full scale; null where "
           "it was not measured (`sound` in `extract.measures`)", unit="decibel"),
    _field("snr_db", pa.float32(), "what is louder than the noise around it, compared with that "
           "noise, the quietest tenth of about 20 s", unit="decibel"),
    _field("bandwidth_hz", pa.float32(), "upper end of the highest band that it uses: 4,000 of "
           "telephones, at most 8,000, half of the rate at which models hear", unit="hertz"),
    _field("clipped_share", pa.float32(), "share of samples that are cut off, 0-1"),
)  # fmt: skip

SOUND_COLUMNS = tuple(field.name for field in _SOUND)
_MEASURES = "values of measures of your own (`extract.measures`), a JSON object of columns by name"
_MEASURED = pa.struct(
    [
        pa.field("name", pa.string()),
        pa.field("reference", pa.string()),
        pa.field("values", pa.binary()),
        pa.field("error", pa.string()),
    ]
)

_FURTHER_KIND = pa.struct(
    [
        pa.field("kind", pa.string()),
        pa.field("num_mel_bins", pa.int32()),
        pa.field("pad_value", pa.float32()),
        pa.field("features", pa.list_(pa.float16())),
    ]
)

PARTS = _schema(
    "parts",
    _RECORDING_ID, _URI, _SIZE, _ETAG, _DIGEST, _METADATA, _BEGUN_BY,
    _PART, _LAST, _CHANNEL, _PART_START, _PART_END,
    _STATUS, *_ERRORS, *_AUDIO,
    _field("speech_s", pa.float64(), "detected speech within the part; null if not looked for",
           unit="second"),
    _field("speech_spans", _SPANS, "detected speech, padded, in recording time; null: not sought"),
    _field("num_samples", pa.int64(), "16 kHz samples of audio in the part"),
    _field("num_mel_bins", pa.int32(), "rows of the features"),
    _field("features", pa.list_(pa.float16()),
           "log-mel, frame-major (frame, mel) flattened; null unless status is ok"),
    _field("pad_value", pa.float32(), "log-mel value of digital silence in this part"),
    _field("language_features", pa.list_(pa.float16()),
           "whole windows (frame, mel) of the recording's first speech, for language detection; "
           "null when that window lies in this part's own features"),
    _field("further", pa.list_(_FURTHER_KIND),
           "features (frame, mel) of other kinds, flattened, for models that take them"),
    _field("language_window_start_s", pa.float64(), "start of the first language window",
           unit="second"),
    _field("decode_s", pa.float64(), "time spent extracting this part", unit="second"),
    _field("measured", pa.list_(_MEASURED), "measures of the part: name, package.module:Class, "
           "and values as an .npy file, or why there are none"),
)  # fmt: skip

_START = _field("start_s", pa.float64(), "start, from the start of the recording", unit="second")
_END = _field("end_s", pa.float64(), "end, from the start of the recording", unit="second")
_WORD = _field("word", pa.string(), "the word with its spaces and punctuation")
_WORD_SCORE = _field("probability", pa.float32(), "mean probability of the word's tokens, 0-1")
_WORDS = pa.list_(pa.struct([_WORD, _START, _END, _WORD_SCORE]))

SEGMENT_FIELDS = (
    _field("segment", pa.int32(), "index of the segment within its part, from 0"),
    _START,
    _END,
    _field("text", pa.string(), "transcribed text"),
    _field("tokens", pa.list_(pa.int32()), "token ids of the text"),
    _field("language", pa.string(), "language code the segment was decoded in"),
    _field("language_probability", pa.float32(), "its probability; null when it was given"),
    _field("task", pa.string(), "transcribe or translate"),
    _field(
        "confidence", pa.float32(), "estimated fraction of correct words, 0 to 1; see calibration"
    ),
    _field("text_logprob", pa.float32(), "mean log-probability of the segment's text tokens"),
    _field("avg_logprob", pa.float32(), "mean log-probability of the window, end token included"),
    _field(
        "no_speech_prob",
        pa.float32(),
        "probability that the window contains no speech; null where the model does not estimate it",
    ),
    _field("compression_ratio", pa.float32(), "text bytes over zlib bytes; high means repetition"),
    _field("temperature", pa.float32(), "sampling temperature that was accepted; 0 is greedy"),
    _field(
        "speech_fraction",
        pa.float32(),
        "fraction of the segment inside detected speech; null without detection",
    ),
    _field(
        "known_hallucination",
        pa.bool_(),
        "whether the whole text is a known hallucination of models in audio without speech, such "
        "as `Thanks for watching!`, or that of an English-only model on another language",
    ),
    _field("words", _WORDS, "words with times; null without `decoding.word_timestamps`"),
    *_SOUND,
    _field("measures", pa.string(), f"{_MEASURES}; null where there are none"),
)

_LABEL_NAME = _field("label", pa.string(), "a language code, or a class of the checkpoint")
LABEL_FIELDS = (
    _field("window", pa.int32(), "index of the window within its part, from 0"),
    _START,
    _END,
    _field("weight_s", pa.float64(), "what the window counts in means: detected speech in it; "
           "all of it where speech was not detected", unit="second"),
    _field("rank", pa.int32(), "place among the window's labels, the likeliest is 1"),
    _LABEL_NAME,
    _field("probability", pa.float32(), "its probability in the window, 0-1"),
)  # fmt: skip

_LABEL_PROBABILITY = _field("probability", pa.float32(), "mean over windows, 0-1")
_LABEL_MEANS = pa.list_(pa.struct([_LABEL_NAME, _LABEL_PROBABILITY]))
_LABEL = (
    _field("label", pa.string(), "likeliest label, by mean over windows weighted by speech; null "
           "where nothing was classified"),
    _field("label_probability", pa.float32(), "that mean, 0-1"),
)  # fmt: skip

_WORD_SPANS = pa.list_(
    pa.struct(
        [
            _field("first", pa.int32(), "number of a word in the text, from 0"),
            _field("stop", pa.int32(), "number of the word after the last of the span"),
            _field("end_s", pa.float64(), "where its last word ends", unit="second"),
        ]
    )
)
_TEXT_WORDS = _field("text_words", pa.int32(), "words of the text that was given to be aligned; "
                     "null without `decoding.align`, and without speech")  # fmt: skip
_EXTRA_WORDS = _field("extra_words", pa.int32(), "recognized words that are not in that text; null "
                      "without `decoding.align`, and without speech")  # fmt: skip
_WITHOUT_TEXT = _field(
    "speech_without_text_s",
    pa.float64(),
    "detected speech in gaps between segments with 2 s of it or more; null where speech was not "
    "looked for, and where nothing was transcribed",
    unit="second",
)
_PART_RESULT = (
    _field("duration_s", pa.float64(), "audio decoded in this part", unit="second"),
    _field("speech_s", pa.float64(), "detected speech within the part; null if not looked for",
           unit="second"),
    _STATUS, *_ERRORS,
    _field("attempts", pa.int32(), "times the part was tried in this run"),
    _field("segments_written", pa.int32(), "rows in the segments table, or in that of labels"),
    *_AUDIO,
    _field("language", pa.string(), "language the part was decoded in, or was found to be in; null "
           "without speech"),
    _field("language_probability", pa.float32(), "its probability; null when it was given"),
    _field("device", pa.string(), "device that transcribed; null where none did"),
    _field("decode_s", pa.float64(), "time spent extracting", unit="second"),
    _field("transcribe_s", pa.float64(), "time from submission to result", unit="second"),
    _WITHOUT_TEXT,
    _TEXT_WORDS,
    _field("text_lengths", pa.list_(pa.int32()), "characters of each of these words, with a space"),
    _field("text_spans", _WORD_SPANS, "which of them the part says, ascending; what no part says "
           "is not in the audio"),
    _EXTRA_WORDS,
    _field("label_means", _LABEL_MEANS, "the part's likeliest labels, at most 32, by mean over its "
           "windows weighted by speech, the likeliest first"),
    _field("label_weight_s", pa.float64(), "sum of its windows' weights", unit="second"),
    *_SOUND,
    *_VOICES,
    _FINGERPRINT,
    _field("measures", pa.string(), f"{_MEASURES}, of the part's speech; for a measure that "
           "failed, also a packaged one, a column `error`; null where there are none"),
)  # fmt: skip

RESULTS = _schema(
    "results",
    _RECORDING_ID, _URI, _SIZE, _ETAG, _DIGEST, _METADATA, _BEGUN_BY,
    _PART, _LAST, _CHANNEL, _PART_START, _PART_END,
    *_PART_RESULT,
    _field("segments", pa.list_(pa.struct(list(SEGMENT_FIELDS))), "the part's segments, in order"),
    _field("labels", pa.list_(pa.struct(list(LABEL_FIELDS))),
           "labels of the part's windows, in order; null where it was transcribed"),
)  # fmt: skip

_RUN_ID = _field("run_id", pa.string(), "the run that wrote the row")

_MODEL = (
    _field("model", pa.string(), "checkpoint as configured"),
    _field("model_revision", pa.string(), "hash that names the exact weights"),
)

SEGMENTS = _schema(
    "segments",
    _RUN_ID, _RECORDING_ID, _URI, _PART, _CHANNEL, *SEGMENT_FIELDS, *_MODEL,
    _field("calibration", pa.string(), "what `confidence` was fitted on: default, or a model"),
)  # fmt: skip

LABELS = _schema(
    "labels",
    _RUN_ID, _RECORDING_ID, _URI, _PART, _CHANNEL, *LABEL_FIELDS, *_MODEL,
)  # fmt: skip

OUTCOMES = _schema(
    "outcomes",
    _RUN_ID, _BEGUN_BY, _RECORDING_ID, _URI, _SIZE, _ETAG, _DIGEST, _METADATA,
    _PART, _LAST, _CHANNEL, _PART_START, _PART_END, *_PART_RESULT,
)  # fmt: skip

RECORDINGS = _schema(
    "recordings",
    _RUN_ID, _BEGUN_BY, _RECORDING_ID, _URI, _SIZE, _ETAG, _DIGEST, _METADATA,
    _field("status", pa.string(), "failed if any part failed, else ok if any part has segments or "
           "labels, else no_speech"),
    *_ERRORS, *_AUDIO,
    _field("duration_s", pa.float64(), "audio decoded", unit="second"),
    _field("speech_s", pa.float64(), "detected speech", unit="second"),
    _WITHOUT_TEXT,
    _field("parts", pa.int32(), "parts committed"),
    _field("segments", pa.int32(), "segments written, or labels"),
    _field("languages", pa.list_(pa.string()), "languages decoded, that of most speech first"),
    _TEXT_WORDS,
    _field("missing_words", pa.int32(), "number of them that are not in the audio; null without "
           "`decoding.align`, and where a part failed"),
    _EXTRA_WORDS,
    *_LABEL,
    _field("gone_since", pa.timestamp("ms", tz="UTC"), "start of the first run that did not list "
           "it any more; null while it is listed, or in an archive that could not be read"),
)  # fmt: skip

SPEAKERS = _schema(
    "speakers",
    _RECORDING_ID, _URI,
    _field("channel", pa.int32(), "number of the channel transcribed separately; null when mixed "
           "to mono"),
    _field("start_s", pa.float64(), "start of the turn, from the start of the recording; null, "
           "with all but made_of, in the only row of a recording without a speaker", unit="second"),
    _field("end_s", pa.float64(), "end of the turn", unit="second"),
    _field("speaker", pa.string(), "S1, S2 ... by first appearance in the recording"),
    _field("confidence", pa.float32(), "estimated probability that it is this one of the speakers "
           "found, 0-1"),
    _field("embedding", pa.binary(), "mean embedding of the speaker, of length 1, as little-endian "
           "float16; in the first of the speaker's turns alone"),
    _field("made_of", pa.string(), "hash of the parts and settings that the turns were made of"),
)  # fmt: skip

HOOKS = _schema(
    "hooks",
    _RECORDING_ID, _URI,
    _field("error_kind", pa.string(), "name of the error where the function failed for the "
           "recording, in its only row; null otherwise"),
    _field("error_message", pa.string(), "what the error said"),
    _field("made_of", pa.string(), "hash of the parts, corrections and settings that the "
           "recording's rows were made of; with nulls in all other columns where it has none"),
)  # fmt: skip

VOICES = _schema(
    "voices",
    _RECORDING_ID, _URI,
    _field("speaker", pa.string(), "S1, S2 ... of the recording"),
    _field("voice", pa.string(), "V1, V2 ... by first appearance in the corpus, sorted by URI; the "
           "same in all recordings of one person, as far as likeness tells"),
    _field("made_of", pa.string(), "hash of the settings, and that of the recording's turns"),
)  # fmt: skip

DUPLICATES = _schema(
    "duplicates",
    _RECORDING_ID, _URI, _CHANNEL,
    _field("start_s", pa.float64(), "start of the copy, from the start of the recording",
           unit="second"),
    _field("end_s", pa.float64(), "its end", unit="second"),
    _field("other_recording_id", pa.string(), "recording with the same audio whose uri sorts "
           "before; null in a row that only says that a recording was compared"),
    _field("other_uri", pa.string(), "its URI"),
    _field("other_channel", pa.int32(), "channel there, as in channel"),
    _field("other_start_s", pa.float64(), "start there", unit="second"),
    _field("other_end_s", pa.float64(), "end there", unit="second"),
    _field("likeness", pa.float32(), "share of equal bits of the fingerprints, 0.5 by chance"),
    _field("compared", pa.bool_(), "false where the recording has no fingerprint, so that its "
           "copies are not known"),
    _field("made_of", pa.string(), "hash of the parts and settings that were compared; null in "
           "rows of a pair"),
)  # fmt: skip

_HEARD = {field.name: field for field in SEGMENT_FIELDS}
_SCORE_NAMES = ("confidence", "avg_logprob", "no_speech_prob", "compression_ratio", "temperature")
_EXAMPLE = _field("example_id", pa.string(), "recording, channel if separate, number of its "
                  "first segment; null outside examples")  # fmt: skip
_DISAGREEMENT = "words that differ from the other run, per word of the other run; null without one"
_FROM_OTHER = "share of words that the other run wrote, by selection.select; null: not chosen"
_WER = "word errors per word of the existing transcript; null without one"

_PERSON = (
    "by a name that is one person's in all recordings: given, of a voice, or recording and "
    "speaker; null where it is not known"
)

SELECTION = _schema(
    "selection",
    _RECORDING_ID, _URI, _SIZE, _ETAG,
    _field("recording_s", pa.float64(), "audio decoded of the recording", unit="second"),
    _CHANNEL, _TRACK,
    *(_HEARD[name] for name in ("start_s", "end_s", "text", "language", "language_probability",
                                "task", *_SCORE_NAMES, "speech_fraction", "known_hallucination")),
    *_SOUND,
    _field("corrected", pa.bool_(), "whether a person corrected or checked the text"),
    _field("speaker", pa.string(), f"who says most of it, {_PERSON}"),
    _field("num_words", pa.int32(), "number of words; characters in scripts without spaces"),
    _field("num_letters", pa.int32(), "number of characters that are letters or digits"),
    _field("unique_words", pa.float32(), "different words per word; null under 10 words"),
    _field("repeats", pa.int32(), "how often the same few words stand in a row, at most"),
    _field("longest_word", pa.int32(), "characters of the longest word; null without spaces"),
    _field("copies", pa.int64(), "segments of the run with this text"),
    _field("duplicate_fraction", pa.float32(), "fraction of it that is audio of an earlier "
           "recording; null where recordings were not compared"),
    _field("listed", pa.bool_(), "whether its text is one of selection.drop_texts"),
    _field("disagreement", pa.float32(), _DISAGREEMENT),
    _field("from_other", pa.float32(), _FROM_OTHER),
    _field("wer", pa.float32(), _WER),
    _field("reference_language", pa.string(), "that of the existing transcript; null: unknown"),
    _field("reference", pa.string(), "existing transcript of the recording, in its first row"),
    _field("dropped_by", pa.string(), "first rule that drops the segment; null: kept"),
    _field("rules", pa.list_(pa.string()), "every rule that would drop it"),
    _field("split", pa.string(), "train, validation or test"),
    _EXAMPLE,
    *_MODEL,
)  # fmt: skip

EXAMPLES = _schema(
    "examples",
    _EXAMPLE,
    _field("audio", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]),
           "16 kHz mono, encoded"),
    _HEARD["text"],
    _field("whisper_transcript", pa.string(), "the text between Whisper's timestamps, which count "
           "from the start of the example"),
    _field("condition_on_prev", pa.string(), "text of the example before; null where it is not "
           "what was said right before"),
    _HEARD["language"], _HEARD["task"],
    _field("duration_s", pa.float64(), "audio of the example", unit="second"),
    _RECORDING_ID, _URI, _CHANNEL, _TRACK, _HEARD["start_s"], _HEARD["end_s"],
    _field("confidence", pa.float32(), "estimated share of right words, 0-1; least of its "
           "segments"),
    _field("avg_logprob", pa.float32(), "mean log-probability; least of its segments"),
    _field("no_speech_prob", pa.float32(), "probability of no speech; greatest of its segments"),
    _field("compression_ratio", pa.float32(), "text bytes over zlib bytes; greatest of its "
           "segments"),
    _field("temperature", pa.float32(), "sampling temperature; greatest of its segments"),
    _field("disagreement", pa.float32(), f"{_DISAGREEMENT}; greatest of its segments"),
    _field("from_other", pa.float32(), f"{_FROM_OTHER}; greatest of its segments"),
    _field("wer", pa.float32(), f"{_WER}; greatest of its segments"),
    _field("corrected", pa.bool_(), "whether a person corrected or checked all its segments"),
    _field("speaker", pa.string(), f"who says all of it, {_PERSON}; null where several do"),
    _field("reference", pa.string(), "existing transcript if the example covers the whole "
           "recording; else null"),
    *_MODEL,
)  # fmt: skip

_OF_PARTS = {"segment", "measures", *SOUND_COLUMNS}
_SEGMENT_OF_TRANSCRIPT = pa.struct(
    [*(field for field in SEGMENT_FIELDS if field.name not in _OF_PARTS), _CHANNEL,
     pa.field("speaker", pa.string())]
)  # fmt: skip
BATCH_COLUMNS = _schema(
    "batch_columns",
    _field("text", pa.string(), "transcribed text; empty without speech, null if it failed"),
    _field("language", pa.string(), "language of most of it; null without speech"),
    _field("confidence", pa.float32(), "mean of its segments over time; null without segments"),
    _field("duration_s", pa.float64(), "audio decoded; null if it failed", unit="second"),
    _field("segments", pa.list_(_SEGMENT_OF_TRANSCRIPT),
           "segments by time, with channels and speakers where these were requested"),
    _field("error_kind", pa.string(), "short stable name of the failure; null without one"),
    _field("error", pa.string(), "what happened and what to do; null without a failure"),
)  # fmt: skip
