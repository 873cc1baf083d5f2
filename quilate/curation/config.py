"""What a recipe says of one curation: its sources, and every step with its thresholds."""

from __future__ import annotations

from pydantic import Field, model_validator

from quilate.config import Config
from quilate.curation.decontaminate import DecontaminateConfig
from quilate.curation.gopher import STOP_WORDS, QualityConfig, RepetitionConfig
from quilate.curation.languages import LanguageConfig
from quilate.curation.linewise import LineConfig
from quilate.curation.minhash import MinHashConfig
from quilate.curation.personal import PersonalDataConfig
from quilate.curation.sources import RawSourceConfig
from quilate.curation.streams import LimitsConfig
from quilate.curation.substrings import SubstringConfig
from quilate.curation.urls import UrlConfig


class CurateConfig(Config):
    sources: dict[str, RawSourceConfig] = Field(min_length=1)
    """The raw sources, by name."""
    urls: UrlConfig | None = UrlConfig()
    """Rules on addresses; null leaves the step out, as for all steps below."""
    language: LanguageConfig | None = LanguageConfig()
    """Language identification."""
    repetition: RepetitionConfig | None = RepetitionConfig()
    """Documents that repeat themselves."""
    quality: QualityConfig | None = QualityConfig()
    """Documents that are not running text."""
    lines: LineConfig | None = LineConfig()
    """Lines that are not text."""
    near_duplicates: MinHashConfig | None = MinHashConfig()
    """Documents that are almost another one."""
    substrings: SubstringConfig | None = SubstringConfig()
    """Passages that stand elsewhere too."""
    decontaminate: DecontaminateConfig | None = DecontaminateConfig()
    """Documents that hold dev or test items of the recipe's task, or of others."""
    personal_data: PersonalDataConfig | None = PersonalDataConfig()
    """Personal data."""
    limits: LimitsConfig = LimitsConfig()
    """What single documents and files may cost."""

    @model_validator(mode="after")
    def _stop_words_are_known(self) -> CurateConfig:
        if self.quality is not None and self.quality.min_stop_words and not self.stop_words():
            raise ValueError(
                f"quality: no stop words are known for {', '.join(self._languages())}: "
                "give `quality.stop_words`, or `min_stop_words: 0`"
            )
        return self

    def _languages(self) -> list[str]:
        return self.language.accept if self.language is not None else list(STOP_WORDS)

    def stop_words(self) -> frozenset[str]:
        """The stop words of every language that is wanted."""
        if self.quality is not None and self.quality.stop_words is not None:
            return frozenset(word.lower() for word in self.quality.stop_words)
        return frozenset(word for code in self._languages() for word in STOP_WORDS.get(code, ()))
