"""Personal data: checksums of known numbers, what is found in Spanish text, what becomes of it."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import get_args

import pytest

from quilate.curation.personal import (
    PersonalDataConfig,
    PersonalType,
    Redactor,
    Span,
    TaggerConfig,
    valid_card,
    valid_iban,
    valid_national_id,
    valid_social_security,
)

ALL = list(get_args(PersonalType))


@pytest.mark.parametrize("number", ["12345678Z", "00000000T", "12.345.678-Z", "X1234567L", "Z-1234567-R", "y0000000z"])
def test_national_ids(number: str) -> None:
    """12345678Z is the Interior Ministry's own example; of 23 letters exactly one is right."""
    assert valid_national_id(number)
    letters = "ABCDEFGHJKLMNPQRSTVWXYZ"
    assert sum(valid_national_id(number[:-1] + letter) for letter in letters) == 1


def test_other_checksums() -> None:
    assert valid_iban("ES91 2100 0418 4502 0005 1332")  # the example of the Spanish banking association
    assert valid_iban("GB82 WEST 1234 5698 7654 32")  # ISO 13616's
    assert not valid_iban("ES91 2100 0418 4502 0005 1333")
    assert valid_card("4111 1111 1111 1111")
    assert not valid_card("4111 1111 1111 1112")
    assert not valid_card("0000 0000 0000 0000")
    assert valid_social_security("28/12345678/40")  # 2812345678 = 97 * 28993254 + 40
    assert not valid_social_security("28/12345678/41")
    assert valid_social_security("08 00000001 27")  # below ten millions: 1 + 8 * 10^7 = 97 * 824742 + 27


def spans(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for span in Redactor(PersonalDataConfig(types=ALL)).spans(text):
        found.setdefault(span.type, []).append(text[span.start : span.end])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Escriba a maría.núñez+alta@hospital.example.es.", {"email": ["maría.núñez+alta@hospital.example.es"]}),
        ("DNI 12345678-Z, o el 12345678-A", {"national_id": ["12345678-Z"]}),
        ("NIE: X1234567L.", {"national_id": ["X1234567L"]}),
        ("Tfno. 948 29 65 00 y 600123456", {"phone": ["948 29 65 00", "600123456"]}),
        ("Llame al +34 612 345 678, no al 1.612.345.678", {"phone": ["+34 612 345 678"]}),
        ("leucocitos 912345678,5 y 612345678/mm3", {}),
        ("NASS: 78 91574785 04", {"social_security": ["78 91574785 04"]}),
        ("IBAN ES9121000418450200051332", {"iban": ["ES9121000418450200051332"]}),
        ("desde 8.8.8.8, no desde 192.168.1.1", {"ip": ["8.8.8.8"]}),
        ("NHC: 5467980. Episodio: 234456.", {"record": ["5467980", "234456"]}),
        ("Dra. Íñiga Ñúñez de la Peña. Hospital", {"name": ["Íñiga Ñúñez de la Peña"]}),
        ("Médico: José Mª Lasso NºCol: 28 28 57941.", {"name": ["José Mª Lasso"], "record": ["28 28 57941"]}),
        ("vive en la C/ Doctor Fleming, 13, 2º B desde", {"address": ["C/ Doctor Fleming, 13, 2º B"]}),
        ("Avda. Gaspar Aguilar, 90 46017 Valencia", {"address": ["Avda. Gaspar Aguilar, 90"], "postcode": ["46017"]}),
        ("el 12 de mayo de 2014 y el 3/5/14", {"date": ["12 de mayo de 2014", "3/5/14"]}),
        ("la dosis 13/14/2014 no es una fecha", {}),
        ("Mujer de 46 años que desde hace 10 años fuma", {"age": ["46 años"]}),
        ("en 2003 y en 2003 ml", {"date": ["2003"]}),
        ("Predni sona no: prednisona 10 mg, participan 120, manifiesta 3, nieta 2, tricipital 12", {}),
        ("episodio 2 de sangrado, episodio 2003, historia de 7 días", {}),
        ("DNI12345678Z, NHC5467980", {"record": ["12345678Z", "5467980"]}),
        ("ES91 2100 0418 4502 0005 1332 EUR", {"iban": ["ES91 2100 0418 4502 0005 1332"]}),
        ("ES9121000418450200051332 TITULAR ANA", {"iban": ["ES9121000418450200051332"]}),
        ("ES9121000418450200051332X y ES9121000418450200051331", {}),
        ("CP12 ES9121000418450200051332 EUR", {"iban": ["ES9121000418450200051332"]}),
        ("BE68539007547034 BIC", {"iban": ["BE68539007547034"]}),
        ("vitamina D. Tras dos meses, dímero D. Exámenes Generales, +0,50 D. Desapareció, 25-OH-D. Esta", {}),
        ("Remitido por: D. Juan Pérez. D. Luis Gil vino", {"name": ["Juan Pérez", "Luis Gil"]}),
        ("Teléfono: 912345678\n28001 Madrid", {"phone": ["912345678"], "postcode": ["28001"]}),
        ("Tel. 912345678 3 de mayo", {"phone": ["912345678"], "date": ["3 de mayo"]}),
        ("Tel. +33 1 23 45 67 89", {"phone": ["+33 1 23 45 67 89"]}),
        ("el 1.234.567-L", {"national_id": ["1.234.567-L"]}),
    ],
)
def test_what_is_found(text: str, expected: dict[str, list[str]]) -> None:
    assert spans(text) == expected


TEXT = "La Dra. Núñez (tel. 948 29 65 00) vio a la niña el 3/5/2014."


def test_redact_mask_and_drop() -> None:
    plain = Redactor(PersonalDataConfig()).redact(TEXT)
    assert plain.text == "La Dra. [NAME] (tel. [PHONE]) vio a la niña el 3/5/2014."  # dates must be asked for
    assert (dict(plain.found), plain.drop) == ({"name": 1, "phone": 1}, None)
    masked = Redactor(PersonalDataConfig(action="mask", types=ALL)).redact(TEXT)
    assert masked.text == "La Dra. XXXXX (tel. 000 00 00 00) vio a la niña el 0/0/0000."
    mixed = Redactor(PersonalDataConfig(actions={"phone": "drop"})).redact(TEXT)
    assert mixed.drop == "phone"


def test_a_further_recognizer_is_heard_and_yields_to_the_rules() -> None:
    def places(text: str) -> list[Span]:
        return [Span(match.start(), match.end(), "place") for match in re.finditer("Núñez|niña", text)]

    redacted = Redactor(PersonalDataConfig(), [places]).redact(TEXT)
    assert redacted.text == "La Dra. [NAME] (tel. [PHONE]) vio a la [PLACE] el 3/5/2014."
    assert dict(redacted.found) == {"name": 1, "phone": 1, "place": 1}


def test_what_a_further_recognizer_finds_beyond_a_rule_is_not_left_standing() -> None:
    """The rule finds `Núñez`; a model that saw the whole of it must not be silenced by a part."""
    found = [Span(3, TEXT.index("tel."), "name"), Span(TEXT.index("5 00"), TEXT.index("o a la"), "name")]
    redactor = Redactor(PersonalDataConfig(), [lambda _: found])
    assert [(TEXT[s.start : s.end], s.type) for s in redactor.spans(TEXT)] == [
        ("Dra. Núñez", "name"), ("948 29 65 00", "phone"), (") vi", "name"),
    ]  # fmt: skip
    assert redactor.redact(TEXT).text == "La [NAME] (tel. [PHONE][NAME]o a la niña el 3/5/2014."


def test_an_action_for_what_is_not_looked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="'phones', which is not looked for: email"):
        PersonalDataConfig(actions={"phones": "drop"})
    tagger = TaggerConfig(path="x", labels={"TERRITORIO": "place"})
    assert PersonalDataConfig(actions={"place": "mask"}, tagger=tagger).actions == {"place": "mask"}


@pytest.mark.data
def test_recall_on_real_letters() -> None:
    """The first forty letters of MEDDOCAN's development set; docs/studies/curation.md has the test set."""
    folder = os.environ.get("QUILATE_DATA")
    if not folder or not (Path(folder) / "meddocan").exists():
        pytest.skip("QUILATE_DATA is not set, or has no meddocan")
    labels = {
        "CORREO_ELECTRONICO": "email",
        "FECHAS": "date",
        "ID_ASEGURAMIENTO": "social_security",
        "CALLE": "address",
    }
    redactor = Redactor(PersonalDataConfig(types=ALL))
    with gzip.open(Path(folder) / "meddocan" / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(40), file, strict=False)]
    hit = dict.fromkeys(labels.values(), 0)
    total = dict.fromkeys(labels.values(), 0)
    for row in rows:
        found = redactor.spans(row["text"])
        for entity in row["entities"]:
            if wanted := labels.get(entity["label"]):
                total[wanted] += 1
                hit[wanted] += any(s.start < entity["end"] and entity["start"] < s.end for s in found)
    assert all(hit[name] >= 0.85 * total[name] for name in hit), (hit, total)
