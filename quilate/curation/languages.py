"""Which language a document is in, by py3langid, whose model is in its package."""

from __future__ import annotations

from pydantic import Field, field_validator

from quilate.config import Config
from quilate.errors import ConfigError

LOOK_AT = 5_000  # characters judged of one document, from its start; guess


class LanguageConfig(Config):
    """The languages that are wanted."""

    accept: list[str] = Field(default=["es"], min_length=1)
    """Languages to keep (ISO 639 codes)."""
    threshold: float = Field(default=0.65, gt=0, lt=1)
    """Least probability of a wanted language (RefinedWeb's, there of fastText)."""

    @field_validator("accept")
    @classmethod
    def _codes(cls, codes: list[str]) -> list[str]:
        for code in codes:
            if not (2 <= len(code) <= 3 and code.isalpha() and code.islower()):
                raise ValueError(f"'{code}' is not an ISO 639 code such as `es`")
        return codes


class Identifier:
    """Says the language of a text.

    Raises:
        ConfigError: the model does not know a wanted language.
    """

    def __init__(self, config: LanguageConfig) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._config = config
        unknown = [code for code in config.accept if code not in self._identifier.labels]
        if unknown:
            raise ConfigError(
                f"language: the identifier does not know '{unknown[0]}'",
                hint=f"it knows {', '.join(sorted(self._identifier.labels))}",
            )

    def judge(self, text: str) -> tuple[str, bool]:
        """The most likely language, and whether a wanted one is likely enough."""
        ranked = self._identifier.rank(text[:LOOK_AT])
        wanted = max(probability for code, probability in ranked if code in self._config.accept)
        return ranked[0][0], bool(wanted >= self._config.threshold)
