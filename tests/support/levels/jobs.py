"""A made-up family's jobs: one window per part, and what it says."""

from pathlib import Path

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import TokenRules, WindowJob
from corpus_asr.decoding.slots import Steps
from corpus_asr.errors import ConfigError
from corpus_asr.segments import Segment
from corpus_asr.transcription.family_jobs import Add, PartDone
from corpus_asr.transcription.windows import PartRequest
from tests.support.levels.tokenizer import END, WORDS, LevelsTokenizer


class LevelsJobs:
    """Meets `FamilyJobs`."""

    @classmethod
    def from_folder(cls, folder: Path) -> "LevelsJobs":
        return cls()

    def check(self, settings: DecodingSettings) -> None:
        if settings.word_timestamps:
            raise ConfigError(
                "checking decoding.word_timestamps: found true, expected false for the family "
                "levels, whose words take no time; correct it"
            )

    def start(
        self, part: PartRequest, *, settings: DecodingSettings, add: Add, done: PartDone
    ) -> None:
        add(_said(part), lambda segments, error: done(segments or [], None, error))


def _said(part: PartRequest) -> Steps[list[Segment]]:
    result = yield WindowJob(
        features=part.window(0, part.num_frames),
        window=(0,),
        prompt=(END,),
        rules=TokenRules(end=END),
        max_new_tokens=len(WORDS),
        num_frames=part.num_frames,
    )
    return [
        Segment(
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
    ]
