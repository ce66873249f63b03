"""What other programs call our settings, and which of our names is meant by an unknown one.

Free of pydantic, so that a command line can ask before it imports any settings.
"""

import difflib
from collections.abc import Collection

# Our names, and those of openai-whisper, faster-whisper, whisperX, whisper.cpp,
# whisper-ctranslate2, NeMo and transformers for the same.
_FOREIGN_NAMES = {
    "beam_size": "num_beams beams beam_width beamsize",
    "channels": "channel audio_channels",
    "checkpoint": "model_size_or_path model_size model_name model_path model_dir model_id",
    "clip_timestamps": "offset_t offset_ms duration",
    "compression_ratio_threshold": "entropy_thold",
    "compute_type": "dtype torch_dtype data_type precision quantization fp16 half",
    "condition_on_prev_tokens": "condition_on_previous_text use_context",
    "cpus_per_worker": "threads cpu_threads intra_threads",
    "device": "device_index device_map use_gpu gpu",
    "hotwords": "hotword keywords key_terms",
    "initial_prompt": "prompt prompt_ids",
    "language": "lang source_lang",
    "language_mode": "multilingual",
    "logprob_threshold": "log_prob_threshold logprob_thold",
    "no_speech_threshold": "no_speech_thold",
    "num_threads": "threads cpu_threads intra_threads",
    "slots": "batch_size",
    "target_language": "target_lang",
    "task": "translate",
    "temperature": "temperatures temperature_increment_on_fallback temperature_inc no_fallback",
    "vad_filter": "vad vad_method speech_detection",
    "vad_min_silence_s": "min_silence_duration_ms vad_min_silence_duration_ms min_silence_ms",
    "vad_min_speech_s": "min_speech_duration_ms vad_min_speech_duration_ms min_speech_ms",
    "vad_pad_s": "speech_pad_ms vad_speech_pad_ms speech_pad_s",
    "vad_threshold": "vad_parameters vad_onset vad_thold threshold",
    "window_s": "chunk_length chunk_length_s chunk_size",
    "word_timestamps": "word_level word_timestamp return_timestamps return_token_timestamps "
    "token_timestamps split_on_word",
}
# The same for options of `corpus-asr` that are no settings, or have another name there.
_OPTIONS = {
    "format": "output_format",
    "max_line_width": "max_len",
    "model": f"checkpoint {_FOREIGN_NAMES['checkpoint']}",
    "threads": f"num_threads {_FOREIGN_NAMES['num_threads']}",
}
# What others have and we have not: why, or what to do.
_ABSENT = {
    "align_model": "the model itself times words; set word_timestamps",
    "best_of": "one sample is drawn at each temperature; leave it out",
    "hf_token": "set the environment variable HF_TOKEN",
    "max_initial_timestamp": "it is 1 s, as in training; leave it out",
    "max_new_tokens": "a window ends where its text ends; leave it out",
    "patience": "beam search ends as in transformers, which has none; leave it out",
    "suppress_blank": "the checkpoint's generation_config.json decides; leave it out",
    "suppress_numerals": "numbers are written as the model writes them; leave it out",
    "suppress_tokens": "the checkpoint's generation_config.json lists them; leave it out",
    "without_timestamps": "segments always have times; leave it out",
}


def name_hint(name: str, here: Collection[str], elsewhere: Collection[str] = ()) -> str:
    """Return what to write instead of an unknown name, or an empty string.

    `here` are our names where `name` was found, with sections before a dot or without, and
    `elsewhere` those of other places, which are meant only by their exact name or by a foreign one.
    A dash is an underscore, and capitals do not count.
    """
    wanted = _plain(name)
    places = [{_plain(key): key for key in reversed(list(keys))} for keys in (here, elsewhere)]
    tables = (*_FOREIGN_NAMES.items(), *_OPTIONS.items())
    ours = [own for own, names in tables if wanted in names.split()]
    for own in (wanted, *ours):
        for place in places:
            if own in place:
                return f"did you mean {place[own]}?"
    if wanted in _ABSENT:
        return f"there is none here: {_ABSENT[wanted]}"
    # 0.6 is difflib's own cutoff: a slip or two in a name of usual length.
    near = difflib.get_close_matches(wanted, places[0], n=1, cutoff=0.6)
    return f"did you mean {places[0][near[0]]}?" if near else ""


def _plain(name: str) -> str:
    return name.strip("-").lower().replace("-", "_").rpartition(".")[2]
