"""How a made-up family transcribes a part: one window, and what it says."""

from pathlib import Path

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import TokenRules, WindowJob
from corpus_asr.decoding.slots import Steps
from corpus_asr.errors import ConfigError
from corpus_asr.segments import Segment
from corpus_asr.transcription.part_transcriber import PartTranscript
from corpus_asr.transcription.windows import PartRequest
from tests.support.levels.tokenizer import END, WORDS, LevelsTokenizer


class LevelsTranscriber:
    """Meets `PartTranscriber`."""

    @classmethod
    def from_folder(cls, folder: Path) -> "LevelsTranscriber":
        return cls()

    def check(self, settings: DecodingSettings) -> None:
        if settings.word_timestamps:
            raise ConfigError(
                "checking decoding.word_timestamps: found true, expected false for the family "
                "levels, whose words take no time; correct it"
            )

    def transcribe(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        result = yield WindowJob(
            features=part.window(0, part.num_frames),
            window=(0,),
            prompt=(END,),
            rules=TokenRules(end=END),
            max_new_tokens=len(WORDS),
            num_frames=part.num_frames,
        )
        segment = Segment(
            start_s=part.start_s,
            end_s=part.end_s,
            text=LevelsTokenizer().decode(result.tokens),
            tokens=result.tokens,
            language=None,
            language_probability=None,
            task="transcribe",
            confidence=1.0,
            avg_logprob=sum(result.logprobs),
            no_speech_prob=None,
            compression_ratio=1.0,
            temperature=0.0,
            speech_fraction=None,
        )
        return PartTranscript(segments=(segment,))
