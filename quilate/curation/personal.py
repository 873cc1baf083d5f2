"""Personal data by rules: numbers with their checksums, patterns, and what a label in front of it gives away.

A recognizer is a function from a text to spans; `Redactor` takes further ones. Rules alone do not find names without a
title or label, nor places; a model of yours that has learned to (`tagger`) stands beside them. What either finds, type
by type, is in docs/studies/curation.md.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from quilate.config import Config

PersonalType = Literal[
    "email", "phone", "national_id", "social_security", "iban", "card", "ip", "record", "name", "address", "postcode",
    "date", "age",
]  # fmt: skip
Action = Literal["redact", "mask", "drop"]

# What points to one person by itself. Dates, ages and postcodes do so together; they are also history and science.
DIRECT: list[PersonalType] = [
    "email", "phone", "national_id", "social_security", "iban", "card", "ip", "record", "name", "address",
]  # fmt: skip


class TaggerConfig(Config):
    """What finds personal data besides the rules."""

    path: str
    """The folder of a finished arm that learned to find spans (`task: {kind: extraction}`), as in
    `runs/meddocan/stages/lora-s0-1a2b3c4d5e`, relative to the recipe's folder."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The type of each of its labels; what is not listed is not looked for. Empty: all labels, by their own names."""


class PersonalDataConfig(Config):
    """Which personal data is looked for, and what becomes of it."""

    types: list[PersonalType] = Field(default=DIRECT, min_length=1)
    """What to look for. `record` is what a label calls a number of a history, an episode or a licence, `name` what
    follows a title or a label. `postcode`, `date` and `age` must be asked for."""
    action: Action = "redact"
    """`redact` writes the type in its place, as in `[EMAIL]`; `mask` keeps its shape and writes X and 0; `drop` drops
    the document."""
    actions: dict[str, Action] = Field(default_factory=dict)
    """Another action for single types."""
    tagger: TaggerConfig | None = None
    """A model that finds more; where it overlaps with a rule, the rule wins."""

    @model_validator(mode="after")
    def _actions_are_for_what_is_looked_for(self) -> PersonalDataConfig:
        if self.tagger is not None and not self.tagger.labels:
            return self  # its labels are known when it is loaded
        known = [*self.types, *(self.tagger.labels.values() if self.tagger is not None else [])]
        for type_ in self.actions:
            if type_ not in known:
                raise ValueError(f"`actions` names '{type_}', which is not looked for: {', '.join(known)}")
        return self


@dataclass(frozen=True)
class Span:
    """`text[start:end]` is personal data of this type."""

    start: int
    end: int
    type: str


Recognizer = Callable[[str], Iterable[Span]]

_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"  # Real Decreto 1553/2005: the number modulo 23


def valid_national_id(text: str) -> bool:
    """Whether the letter of a DNI or NIE is that of its number; one of seven figures has a zero in front."""
    plain = re.sub(r"[\s.\-]", "", text.upper())
    digits = plain[:-1].translate(str.maketrans("XYZ", "012")).zfill(8)
    return digits.isdigit() and len(digits) == 8 and _DNI_LETTERS[int(digits) % 23] == plain[-1]


def valid_social_security(text: str) -> bool:
    """Whether the last two digits of a Spanish affiliation number are the rest of the others modulo 97."""
    digits = re.sub(r"\D", "", text)
    if len(digits) != 12:
        return False
    province, number, control = int(digits[:2]), int(digits[2:10]), int(digits[10:])
    base = number + province * 10**7 if number < 10**7 else int(digits[:10])
    return base % 97 == control


def valid_iban(text: str) -> bool:
    """ISO 13616: letters as numbers, the first four characters last, modulo 97 is 1."""
    plain = re.sub(r"\s", "", text.upper())
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


class _Ibans:
    """What begins as an IBAN does and is one at its country's length: capitals and figures that follow (`ES91 ... 1332
    EUR`) are not of it."""

    type: PersonalType = "iban"

    def __call__(self, text: str) -> Iterator[Span]:
        for match in _IBAN.finditer(text):
            start, country = match.start(1), match[1][:2]
            places = [place for place in range(start, match.end(1)) if not text[place].isspace()]
            for length in [IBAN_LENGTHS[country]] if country in IBAN_LENGTHS else range(len(places), 14, -1):
                end = places[length - 1] + 1 if length <= len(places) else None
                if end is not None and not text[end : end + 1].isalnum() and valid_iban(text[start:end]):
                    yield Span(start, end, self.type)
                    break


# Looked for at every place: what only begins as one ("CP12 ES91 ...") must not hide one behind it.
_IBAN = re.compile(r"(?<!\w)(?=([A-Z]{2}\d{2}(?:[^\S\n]?[\dA-Z]){11,30}))")
# By country (ISO 13616's registry); of other countries any length of 15 to 34 is tried.
IBAN_LENGTHS = {
    "AD": 24, "AT": 20, "BE": 16, "BG": 22, "BR": 29, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18,
    "DO": 28, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25,
    "RO": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SV": 28,
}  # fmt: skip


def valid_card(text: str) -> bool:
    """Luhn's sum (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _valid_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _valid_date(text: str) -> bool:
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) == 3 and numbers[0] > 31:  # year first
        numbers.reverse()
    return len(numbers) != 3 or (1 <= numbers[0] <= 31 and 1 <= numbers[1] <= 12)


_MONTH = r"(?:enero|febrero|marzo|abril|mayo|junio|julio|agosto|sep?tiembre|octubre|noviembre|diciembre)"
_YEAR = r"(?:1[89]|20)\d\d"
_UPPER = r"[A-ZÁÉÍÓÚÜÑÇÀÈÒ]"
# Words with a capital that follow a name and are none.
_NOT_NAMES = (
    r"(?!N[º°.]|(?:Serv[ií][cv]io|Secci[óo]n|Unidad|Departamento|Hospital|Cl[íi]nica|Centro|Complejo|Instituto|Facultad|"
    r"Universidad|Residente|Paciente|Lactante|Calle|Avda|Avenida|Plaza|Paseo|Carretera|Ctra|Camino|Apartado|Apdo|C/|"
    r"E-?mail|Correo|Fecha|Edad|Sexo|Dra?|Se|El|La|Los|Las|En|No|Jefe|M[ée]dico|Especialista)(?!\w))"
)
_PROPER = rf"{_NOT_NAMES}{_UPPER}[\w'’·\-]+"
_NAME = rf"{_PROPER}(?:\s(?:(?:de|del|la|las|los|y|i|da|dos|san)\s){{0,3}}(?:{_PROPER}|{_UPPER}\.)){{0,5}}"
_STREET = (
    r"(?:C/\.?|C\.|[Cc]alle|[Aa]v\.|[Aa]vda\.?|[Aa]venida|[Pp]laza|[Pp]l?za\.?|[Pp]aseo|P\.º|Pº|[Cc]tra\.?|[Cc]arretera|"
    r"[Cc]amino|[Rr]onda|[Tt]ravesía|[Gg]lorieta|[Cc]arrer|[Aa]vinguda|[Rr]ambla|[Rr]úa|[Pp]asaje|[Uu]rb\.|[Pp]ol\.)"
)
_HOUSE = (
    r"(?:(?:,|\s)\s*(?:n\.?\s?[º°o]\.?\s*|núm(?:ero|\.)\s*)?"
    r"(?:\d{1,4}(?:\s?[-–]\s?\d{1,4}(?![\dºª°]|\s?º))?(?!\d)|[sS]/[nN]))"
)
_FLOOR = (
    r"(?:\s*[,\-]?\s*(?:piso\s+)?P?\d{1,2}\s?\.?[ºª°]?[\s\-]*"
    r"(?:[A-Z](?!\w)|[Ii]zq(?:da|uierda)?\.?|[Dd]cha\.?|\d{1,2}[ºª]?)?(?!\w))?"
)
_PATIENT = (
    r"(?:var[óo]n|mujer|hombre|paciente|niñ[oa]|lactante|enferm[oa]|señora?|chic[oa]|joven|anciano|anciana|gestante|"
    r"adolescente|neonato|beb[ée]|escolar|embarazada|masculino|femenin[oa])"
)
_AGE = r"\d{1,3}(?:\s(?:años?|meses|mes|días|semanas|horas)(?:\sy\s(?:\d{1,2}|medio)(?:\s(?:meses|días))?)?)"


@dataclass(frozen=True)
class _Rule:
    """A pattern; the personal data is its group `value` if it has one, and holds if `valid` says so."""

    type: PersonalType
    pattern: re.Pattern[str]
    valid: Callable[[str], bool] = bool

    def __call__(self, text: str) -> Iterator[Span]:
        group = "value" if "value" in self.pattern.groupindex else 0
        for match in self.pattern.finditer(text):
            if self.valid(match.group(group)):
                yield Span(match.start(group), match.end(group), self.type)


def _rule(type_: PersonalType, pattern: str, valid: Callable[[str], bool] = bool) -> _Rule:
    return _Rule(type_, re.compile(pattern), valid)


# In order: where two overlap, the first one named here wins.
RULES: list[_Rule | _Ibans] = [
    _rule("email", r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,5}[A-Za-z]{2,24}(?![\w-])"),
    _Ibans(),
    _rule(
        "national_id",
        r"(?<![\w.])(?:\d{1,2}\.\d{3}\.\d{3}|\d{8}|[XYZxyz][\s\-.]?\d{7})[\s\-.]?[A-HJ-NP-TV-Za-hj-np-tv-z](?!\w)",
        valid_national_id,
    ),
    _rule(
        "social_security",
        r"(?<!\w)(?i:NASS|n\.?º?\s?(?:de\s)?(?:la\s)?s\.?s\.?|afiliación)\s*[:.]?\s*"
        r"(?P<value>\d{2}[\s/\-]?[\d\s/\-]{6,12}\d)",
    ),
    _rule("social_security", r"(?<![\d/\-])\d{2}[\s/\-]?\d{8}[\s/\-]?\d{2}(?![\d/\-])", valid_social_security),
    _rule("card", r"(?<![\d-])(?:\d[ -]?){12,18}\d(?![\d-])", valid_card),
    _rule("ip", r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", _valid_ip),
    _rule(
        "record",
        r"(?<!\w)(?i:NHC|CIPA|CIP|DNI|NIF|NIE|pasaporte|episodio|n\.?\s?[º°o]\.?\s?(?:de\s)?"
        r"(?:col(?:egiad[oa])?|historia|hª)(?:\sclínica)?|historia\sclínica)(?![^\W\d_])"
        r"\s*\.?\s*(?:n\.?[º°]\s*)?[:.]?\s*"
        r"(?P<value>(?:[A-Za-z]{1,5}[\s\-]?)?\d[\d\-/]*(?:[ .]\d[\d\-/]*){0,4}(?:-?[A-Za-z])?)(?!\w)",
        # Neither "episodio 2 de sangrado" nor "episodio 2003" is one.
        lambda value: sum(c.isdigit() for c in value) >= 4 and not re.fullmatch(_YEAR, value),
    ),
    _rule(
        "phone",
        r"(?<![\d.,\-/])(?:\(?(?:\+|00)34\)?[ .\-]?)?[6789](?:\d{8}|\d{2}(?:[ .\-]\d{3}){2}|\d{2}(?:[ .\-]\d{2}){3}|"
        r"\d[ .\-]\d{3}[ .\-]\d{2}[ .\-]\d{2}|\d{2}[ .\-]\d{6})(?![\d\-/]|[.,]\d)",
    ),
    _rule(
        "phone",
        r"(?<!\w)(?i:tel[ée]?f?(?:ono)?s?|tfnos?|tlfn?o?s?|m[óo]vil|fax)\s*[.:]*\s*(?:/\s*fax\s*[:.]*\s*)?"
        r"(?P<value>\(?\+?\s?\d[\d ().\-]{6,18}\d)",
    ),
    _rule("address", r"(?<!\w)(?i:domicilio|dirección)\s*:\s*(?P<value>\S[^\n]{2,80}?)(?=\s*\.?[^\S\n]*(?:\n|$))"),
    _rule("address", rf"(?<!\w){_STREET}\s?(?:[\w'’.º\-]{{1,40}}\s){{0,6}}?[\w'’.\-]{{1,40}}{_HOUSE}{_FLOOR}"),
    _rule("postcode", r"(?:C\.?P\.?|[Cc]ódigo\s[Pp]ostal)\s*[:.]?\s*(?P<value>\d{5})(?!\d)"),
    _rule("postcode", rf"(?<![\d.,])(?:0[1-9]|[1-4]\d|5[0-2])\d{{3}}(?=[\s,.\-–]{{1,3}}{_UPPER})"),
    _rule("date", r"(?<![\d/.\-])\d{1,2}([/\-.])\d{1,2}\1(?:\d{4}|\d{2})(?![\d/\-]|\.\d)", _valid_date),
    _rule("date", r"(?<![\d/.\-])\d{4}([/\-.])\d{1,2}\1\d{1,2}(?![\d/\-]|\.\d)", _valid_date),
    _rule(
        "date",
        rf"(?i:(?<!hospital )(?<!universitario )(?<!\w)(?:\d{{1,2}}º?[\s\-/]+(?:de\s+)?{_MONTH}"
        rf"(?:[\s\-/]*(?:,|de|del)?\s*(?:año\s+)?{_YEAR})?|{_MONTH}\s*(?:,|/|-|de|del)?\s*(?:año\s+)?{_YEAR}|"
        rf"{_MONTH}[\-/]\d\d))(?!\d)",
    ),
    _rule(
        "date",
        rf"(?i:\b(?:en|desde|hasta|de)\s(?:el\s)?)(?P<value>(?:año\s)?{_YEAR})"
        r"(?!\d|[.,]\d|\s?(?:ml|mg|g|cc|kcal|cm|mm|leuc|cél|/))",
    ),
    _rule("age", rf"(?i:\bedad\s*:\s*)(?P<value>{_AGE}|\d{{1,3}}(?=\s|\.))"),
    _rule("age", rf"(?i:\b{_PATIENT}(?:\s[\w,]+){{0,4}}?\sde\s(?:tan\ssolo\s)?)(?P<value>{_AGE})"),
    _rule("age", rf"(?P<value>{_AGE})(?=\sde\sedad)"),
    _rule("age", rf"(?i:\b{_PATIENT}\s*,\s*(?:de\s)?)(?P<value>{_AGE})"),
    _rule(
        "name",
        r"(?<!\w)(?i:nombre|apellidos?|médic[oa]|remitido\spor|responsable\sclínico|facultativo)\s*:\s*"
        rf"(?:(?:Dra?|D|Dña)\.\s*|[Dd]octora?\s)?(?P<value>{_NAME})",
    ),
    _rule(
        "name",
        r"(?<!\w)(?:Dra?s?\.|D\.ª|Dña\.|Sra?\.|[Dd]octora?|[Dd]on|[Dd]oña|DR\.|DRA\.)\s?" rf"(?P<value>{_NAME})",
    ),
    # "D." also ends sentences ("vitamina D. Tras dos meses"): it is a title where one may stand, or before two names.
    _rule("name", rf"(?m:(?:^|[:,;(])[^\S\n]*)D\.\s?(?P<value>{_NAME})"),
    _rule(
        "name",
        rf"(?<!\w)(?<!vitamina )(?<![Dd]ímero )(?<!hepatitis )D\.\s?"
        rf"(?P<value>{_PROPER}\s(?:(?:de|del|la|las|los|y|i|da|dos|san)\s){{0,3}}{_NAME})",
    ),
]


@dataclass(frozen=True)
class Redacted:
    """The text with its personal data treated; `found` counts it by type. `drop` is a type for which the document is
    to be dropped, or None."""

    text: str
    found: Counter[str]
    drop: str | None


class Redactor:
    """Finds and treats personal data.

    Args:
        further: recognizers besides the rules; where they overlap with a rule, the rule wins, and what of theirs lies
            outside it stays.
    """

    def __init__(self, config: PersonalDataConfig, further: Sequence[Recognizer] = ()) -> None:
        self._config = config
        self._rules: list[Recognizer] = [rule for rule in RULES if rule.type in config.types]
        self._further = further

    def spans(self, text: str) -> list[Span]:
        """What was found, in order, without overlaps; what touches and is of one type is one."""
        taken: list[Span] = []
        for rule in self._rules:
            taken += [s for s in rule(text) if not any(s.start < t.end and t.start < s.end for t in taken)]
        for recognizer in self._further:
            found = [piece for span in recognizer(text) for piece in _outside(span, taken)]
            taken += [s for s in found if any(c.isalnum() for c in text[s.start : s.end])]
        return _joined(sorted(taken, key=lambda span: span.start))

    def redact(self, text: str) -> Redacted:
        """Treat everything that is found as the config says."""
        spans = self.spans(text)
        parts: list[str] = []
        position = 0
        drop: str | None = None
        for span in spans:
            action = self._config.actions.get(span.type, self._config.action)
            value = text[span.start : span.end]
            drop = span.type if action == "drop" and drop is None else drop
            shown = f"[{span.type.upper()}]" if action != "mask" else _masked(value)
            parts += [text[position : span.start], shown]
            position = span.end
        return Redacted("".join([*parts, text[position:]]), Counter(span.type for span in spans), drop)


def _outside(span: Span, taken: Iterable[Span]) -> Iterator[Span]:
    """The parts of a span that none of the others covers."""
    start = span.start
    for other in sorted(taken, key=lambda other: other.start):
        if start < other.end and other.start < span.end:
            if start < other.start:
                yield Span(start, other.start, span.type)
            start = other.end
    if start < span.end:
        yield Span(start, span.end, span.type)


def _joined(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].end == span.start and joined[-1].type == span.type:
            joined[-1] = Span(joined[-1].start, span.end, span.type)
        else:
            joined.append(span)
    return joined


def _masked(value: str) -> str:
    return "".join("0" if c.isdigit() else "X" if c.isalpha() else c for c in value)
