"""Personal data by rules: numbers with their checksums, patterns, and what a label in front of it gives away.

A recognizer is a function from a text to spans; `Redactor` takes further ones, a token classifier say. Rules alone do
not find names without a title or label, nor places: docs/studies/curation.md has what they find, type by type.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

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


@dataclass(frozen=True)
class Span:
    """`text[start:end]` is personal data of this type."""

    start: int
    end: int
    type: str


Recognizer = Callable[[str], Iterable[Span]]

_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"  # Real Decreto 1553/2005: the number modulo 23


def valid_national_id(text: str) -> bool:
    """Whether the letter of a DNI or NIE is that of its number."""
    plain = re.sub(r"[\s.\-]", "", text.upper())
    digits = plain[:-1].translate(str.maketrans("XYZ", "012"))
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
RULES: list[_Rule] = [
    _rule("email", r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,5}[A-Za-z]{2,24}(?![\w-])"),
    _rule("iban", r"\b[A-Z]{2}\d{2}(?:\s?[\dA-Z]{4}){3,7}(?:\s?[\dA-Z]{1,3})?\b", valid_iban),
    _rule(
        "national_id",
        r"(?<![\w.])(?:\d{1,2}\.\d{3}\.\d{3}|\d{8}|[XYZxyz][\s\-.]?\d{7})[\s\-.]?[A-HJ-NP-TV-Za-hj-np-tv-z](?!\w)",
        valid_national_id,
    ),
    _rule(
        "social_security",
        r"(?i:NASS|n\.?º?\s?(?:de\s)?(?:la\s)?s\.?s\.?|afiliación)\s*[:.]?\s*"
        r"(?P<value>\d{2}[\s/\-]?[\d\s/\-]{6,12}\d)",
    ),
    _rule("social_security", r"(?<![\d/\-])\d{2}[\s/\-]?\d{8}[\s/\-]?\d{2}(?![\d/\-])", valid_social_security),
    _rule("card", r"(?<![\d-])(?:\d[ -]?){12,18}\d(?![\d-])", valid_card),
    _rule("ip", r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", _valid_ip),
    _rule(
        "record",
        r"(?i:NHC|CIPA|CIP|DNI|NIF|NIE|pasaporte|episodio|n\.?\s?[º°o]\.?\s?(?:de\s)?(?:col(?:egiad[oa])?|historia|hª)"
        r"(?:\sclínica)?|historia\sclínica)\s*\.?\s*(?:n\.?[º°]\s*)?[:.]?\s*"
        r"(?P<value>(?:[A-Za-z]{1,5}[\s\-]?)?\d[\d\-/]*(?:[ .]\d[\d\-/]*){0,4}(?:-?[A-Za-z])?)(?!\w)",
    ),
    _rule(
        "phone",
        r"(?i:tel[ée]?f?(?:ono)?s?|tfnos?|tlfn?o?s?|m[óo]vil|fax)\s*[.:]*\s*(?:/\s*fax\s*[:.]*\s*)?"
        r"(?P<value>\(?\+?\s?\d[\d\s().\-]{6,18}\d)",
    ),
    _rule(
        "phone",
        r"(?<![\d.,\-/])(?:\(?(?:\+|00)34\)?[\s.\-]?)?[6789](?:\d{8}|\d{2}(?:[\s.\-]\d{3}){2}|\d{2}(?:[\s.\-]\d{2}){3}|"
        r"\d[\s.\-]\d{3}[\s.\-]\d{2}[\s.\-]\d{2}|\d{2}[\s.\-]\d{6})(?![\d\-/]|[.,]\d)",
    ),
    _rule("address", r"(?i:domicilio|dirección)\s*:\s*(?P<value>\S[^\n]{2,80}?)(?=\s*\.?[^\S\n]*(?:\n|$))"),
    _rule("address", rf"(?<!\w){_STREET}\s?(?:[\w'’.º\-]+\s){{0,6}}?[\w'’.\-]+{_HOUSE}{_FLOOR}"),
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
        r"(?i:nombre|apellidos?|médic[oa]|remitido\spor|responsable\sclínico|facultativo)\s*:\s*"
        rf"(?:(?:Dra?|D|Dña)\.\s*|[Dd]octora?\s)?(?P<value>{_NAME})",
    ),
    _rule(
        "name",
        r"(?<!\w)(?:Dra?s?\.|D\.ª?|Dña\.|Sra?\.|[Dd]octora?|[Dd]on|[Dd]oña|DR\.|DRA\.)\s?" rf"(?P<value>{_NAME})",
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
        further: recognizers besides the rules; where they overlap with a rule, the rule wins.
    """

    def __init__(self, config: PersonalDataConfig, further: Sequence[Recognizer] = ()) -> None:
        self._config = config
        rules: list[Recognizer] = [rule for rule in RULES if rule.type in config.types]
        self._recognizers = [*rules, *further]

    def spans(self, text: str) -> list[Span]:
        """What was found, in order, without overlaps."""
        taken: list[Span] = []
        for recognizer in self._recognizers:
            found = [s for s in recognizer(text) if not any(s.start < t.end and t.start < s.end for t in taken)]
            taken += found
        return sorted(taken, key=lambda span: span.start)

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


def _masked(value: str) -> str:
    return "".join("0" if c.isdigit() else "X" if c.isalpha() else c for c in value)
