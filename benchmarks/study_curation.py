"""Curation measured: what of planted duplicates, boilerplate, foreign text, test items and personal data it recovers.

`python -m benchmarks.study_curation DATA OUT` (DATA: the folder of data sets, OUT: a new folder) curates real Spanish
text with planted faults, counts their recovery by id, scores the rules for personal data on MEDDOCAN's test set, and
compares decisions and speed with datatrove. It writes `docs/studies/curation.json` and the page made of it.

`python -m benchmarks.study_curation DATA --taggers RUN` scores the rules for personal data again and adds what the arms
of a run of `recipes/deidentify.yaml` find on the same letters, by themselves and beside the rules.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

from benchmarks.study_curation_page import write_page
from quilate.curation import gopher
from quilate.curation.card import make_card, render_card
from quilate.curation.config import CurateConfig
from quilate.curation.minhash import MinHashConfig, MinHasher, shingles
from quilate.curation.personal import PersonalDataConfig, PersonalType, Redactor, Span, TaggerConfig
from quilate.curation.pipeline import OUTPUT, Watch, curate
from quilate.curation.shards import rows
from quilate.files import make_folder, write_json, write_text
from quilate.inference.scorer import load_scorer
from quilate.phases.curate import recognizer_of

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
SEED = 8
PLANTED = 100  # of each kind
FREE_TEXT = 1_500  # clinical cases in which findings of personal data are counted, and by hand looked at
SAMPLED = 300  # documents judged by datatrove too
QUIET = Watch(lambda *_: None, lambda: None)

NOTICE = (
    "Este sitio utiliza tecnologías propias y de terceros que permiten conocer el uso que se hace de cada página, "
    "recordar las preferencias de quien la visita y mostrar contenidos relacionados con su perfil; si continúa la "
    "navegación se entiende que acepta dichas condiciones, que puede cambiar en todo momento desde la sección de "
    "preferencias, donde se explica también durante cuánto tiempo se guardan los datos y quién los trata."
)
MENU = ["Iniciar sesión o registrarse", "Leer más...", "12 comentarios", "COMPARTIR ESTA PÁGINA CON OTROS"]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def paragraphs(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (" ".join(part.split()) for part in file.read().split("\n\n") if part.strip())


def base_documents(data: Path) -> list[dict[str, str]]:
    """Clinical cases, the Quijote and the Debian handbook in pieces of ten paragraphs."""
    clinical = [
        {"id": f"clinical-{row['id']}", "text": row["text"], "source": "clinical"}
        for row in read_jsonl(data / "es_medical_raw" / "es_clinical_cases.jsonl.gz")
    ]
    general = []
    for name in ("quijote", "debian_handbook_es"):
        parts = list(paragraphs(data / "es_general" / f"{name}.txt.gz"))
        pieces = (parts[start : start + 10] for start in range(0, len(parts), 10))
        general += [
            {"id": f"{name}-{n}", "text": "\n\n".join(piece), "source": "general"} for n, piece in enumerate(pieces)
        ]
    return clinical + general


def near_copy(text: str, draw: random.Random, share: float) -> str:
    """A share of the words replaced by others of the text, at random places."""
    words = text.split(" ")
    for place in draw.sample(range(len(words)), round(share * len(words))):
        words[place] = draw.choice(words)
    return " ".join(words)


def personal_values(draw: random.Random) -> dict[str, str]:
    """One made-up value of every type that has a form; check digits are right."""
    number, nine = draw.randrange(10**8), f"{draw.choice('679')}{draw.randrange(10**8):08d}"
    phone = draw.choice(
        [nine, f"{nine[:3]} {nine[3:5]} {nine[5:7]} {nine[7:]}", f"+34 {nine[:3]} {nine[3:6]} {nine[6:]}"]
    )
    account = f"{draw.randrange(10**20):020d}"
    check = 98 - int(f"{account}142800") % 97
    affiliation = f"{draw.randrange(1, 53):02d}{draw.randrange(10**7, 10**8)}"
    street = draw.choice(["C/ Doctor Fleming", "Avda. de la Constitución", "Plaza de los Ñandúes", "Calle Mayor"])
    return {
        "email": f"{draw.choice(['ana', 'íñigo.p', 'alta_2'])}{draw.randrange(999)}@hospital-{draw.randrange(99)}.example.es",  # noqa: E501
        "phone": phone,
        "national_id": f"{number:08d}{draw.choice(['', '-', ' '])}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}",
        "iban": f"ES{check:02d}{account}",
        "social_security": f"{affiliation[:2]}/{affiliation[2:]}/{int(affiliation) % 97:02d}",
        "address": f"{street}, {draw.randrange(1, 200)}, {draw.randrange(1, 9)}º {draw.choice('ABCD')}",
        "name": f"Dr. {draw.choice(['Íñigo', 'José Luis'])} {draw.choice(['Núñez', 'de la Peña'])} Urrutia{draw.randrange(999)}",  # noqa: E501
    }  # fmt: skip


def plant(
    documents: list[dict[str, str]], data: Path, draw: random.Random
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Documents with the faults added after them, and what to look for in the result."""
    long_enough = [d for d in documents if len(d["text"].split()) >= 400]
    chosen = iter(draw.sample(long_enough, 6 * PLANTED))
    planted: list[dict[str, str]] = []
    look: dict[str, Any] = {"menu": {}, "personal": {}, "notice": [], "similarity": {}}

    def add(kind: str, number: int, text: str) -> str:
        planted.append({"id": f"{kind}-{number}", "text": text, "source": "planted"})
        return f"planted/{kind}-{number}"

    for number in range(PLANTED):
        add("exact", number, next(chosen)["text"])
        for kind, share in (("near01", 0.01), ("near05", 0.05)):
            original = next(chosen)["text"]
            copy = near_copy(original, draw, share)
            one, other = set(shingles(original, 5).tolist()), set(shingles(copy, 5).tolist())
            look["similarity"][add(kind, number, copy)] = len(one & other) / len(one | other)
    for _ in range(PLANTED):  # these replace an original: a text with an addition is no duplicate
        for kind in ("notice", "menu", "personal"):
            document = next(chosen)
            text = document["text"]
            if kind == "notice":
                document["text"] = f"{text}\n{NOTICE}"
                look["notice"].append(document["id"])
            elif kind == "menu":
                document["text"] = "\n".join([MENU[0], text, *MENU[1:]])
                look["menu"][document["id"]] = MENU
            else:
                values = personal_values(draw)
                document["text"] = text + "\nContacto: " + "; ".join(values.values()) + "."
                look["personal"][document["id"]] = values
    english = [row["text"] for row in read_jsonl(data / "icl_tasks" / "agnews_test.jsonl.gz")]
    with zipfile.ZipFile(data / "movie_reviews" / "movie_reviews.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".txt"))
        english += [archive.read(n).decode("latin-1") for n in draw.sample(names, PLANTED)]
    for number, text in enumerate(draw.sample(english[:-PLANTED], PLANTED) + english[-PLANTED:]):
        add("english", number, text)
    guanaco = read_jsonl(data / "oasst1" / "guanaco_1k_multilingual.jsonl.gz")
    for language in ("ru", "de", "fr", "ca"):
        for number, row in enumerate(r for r in guanaco if r["lang"] == language):
            add(f"{language}", number, "\n".join(m["content"] for m in row["messages"]))
    items = [row["qtext"] for row in read_jsonl(data / "headqa" / "es_test.jsonl.gz") if len(row["qtext"].split()) >= 8]
    background = iter(draw.sample(long_enough, PLANTED))
    for number, item in enumerate(draw.sample(items, PLANTED)):
        words = next(background)["text"].split()
        add("item", number, f"{' '.join(words[::-1][:120])}\n{item}\n{' '.join(words[::-1][120:240])}")
    return planted, look | {"items": items}


def write_sources(
    folder: Path, documents: list[dict[str, str]], planted: list[dict[str, str]], draw: random.Random
) -> CurateConfig:
    for name in ("clinical", "general"):
        rows_ = [d for d in documents if d["source"] == name]
        write_rows(folder / f"{name}.jsonl", rows_)
    write_rows(folder / "planted.jsonl", planted)
    hostile = make_folder(folder / "hostile")
    with gzip.open(hostile / "bomb.txt.gz", "wb") as file:
        for _ in range(200):
            file.write(b" " * 2**20)
    (hostile / "cut.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "' + draw.randbytes(9000).hex().encode() + b'"}\n')[:4000]
    )
    (hostile / "picture.html").write_bytes(b"\x89PNG" + bytes(2000))
    with zipfile.ZipFile(hostile / "a.zip", "w") as archive:
        archive.writestr("../out.txt", "x")
    sources = {
        "clinical": {"path": "clinical.jsonl", "id": "id", "licence": "CC BY 4.0"},
        "general": {"path": "general.jsonl", "id": "id", "licence": "public domain; GPL-2.0+ or CC-BY-SA-3.0"},
        "planted": {"path": "planted.jsonl", "id": "id"},
        "hostile": {"path": "hostile"},
    }
    return CurateConfig.model_validate({"sources": sources})


def write_rows(path: Path, documents: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents), encoding="utf-8")


def recovery(
    kept: dict[str, str], planted: list[dict[str, str]], look: dict[str, Any], documents: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """How much of everything planted is gone, and how much of the rest went with it."""
    found: list[dict[str, Any]] = []

    def count(what: str, gone: int, of: int, note: str = "") -> None:
        found.append({"what": what, "recovered": gone, "of": of, "note": note})

    by_kind: dict[str, list[str]] = {}
    for document in planted:
        by_kind.setdefault(document["id"].rpartition("-")[0], []).append(f"planted/{document['id']}")
    names = {
        "exact": "exact copies", "near01": "copies with 1 % of words replaced",
        "near05": "copies with 5 % of words replaced",
        "english": "English texts", "ru": "Russian chats", "de": "German chats", "fr": "French chats",
        "ca": "Catalan chats",
        "item": "documents with a HEAD-QA test question",
    }  # fmt: skip
    for kind, ids in by_kind.items():
        similar = [look["similarity"][i] for i in ids if i in look["similarity"]]
        expected = sum(1 - (1 - s**8) ** 14 for s in similar)
        note = f"expected of MinHash at their similarity: {expected:.0f}" if similar else ""
        count(names[kind], sum(i not in kept for i in ids), len(ids), note)
    place = {d["id"]: f"{d['source']}/{d['id']}" for d in documents}
    notices = [kept[place[i]] for i in look["notice"] if place[i] in kept]
    count(
        "notice of 70 words, copies of it", sum(NOTICE not in t for t in notices), len(notices), "one copy is to stay"
    )
    lines = [(kept[place[i]], line) for i, menu in look["menu"].items() if place[i] in kept for line in menu]
    count("lines of menus", sum(line not in text.split("\n") for text, line in lines), len(lines))
    for type_ in next(iter(look["personal"].values())):
        values = [(kept[place[i]], v[type_]) for i, v in look["personal"].items() if place[i] in kept]
        count(f"personal data: {type_}", sum(value not in text for text, value in values), len(values))
    return found


MEDDOCAN = {
    "CORREO_ELECTRONICO": "email", "NUMERO_TELEFONO": "phone", "NUMERO_FAX": "phone", "FECHAS": "date",
    "CALLE": "address",
    "EDAD_SUJETO_ASISTENCIA": "age", "ID_SUJETO_ASISTENCIA": "record", "ID_CONTACTO_ASISTENCIAL": "record",
    "ID_TITULACION_PERSONAL_SANITARIO": "record", "ID_ASEGURAMIENTO": "social_security",
    "NOMBRE_SUJETO_ASISTENCIA": "name", "NOMBRE_PERSONAL_SANITARIO": "name",
}  # fmt: skip
BEYOND_RULES = {
    "TERRITORIO": "place", "PAIS": "country", "HOSPITAL": "hospital", "CENTRO_SALUD": "hospital",
    "INSTITUCION": "institution", "FAMILIARES_SUJETO_ASISTENCIA": "relative", "SEXO_SUJETO_ASISTENCIA": "sex",
    "PROFESION": "profession",
}  # fmt: skip


def type_of(type_: str | None, text: str) -> str | None:
    """Places of five digits are postcodes."""
    return "postcode" if type_ == "place" and re.fullmatch(r"\d{5}", text) else type_


def scores(data: Path, find: Callable[[str], Iterable[Span]], types: set[str]) -> dict[str, dict[str, float]]:
    """Per type on MEDDOCAN's test set: exact spans, and the share of the type's characters that any span covers."""
    right, wrong, missed, covered, characters = (Counter[str]() for _ in range(5))
    for row in read_jsonl(data / "meddocan" / "test.jsonl.gz"):
        gold = set()
        for entity in row["entities"]:
            type_ = type_of((MEDDOCAN | BEYOND_RULES).get(entity["label"]), entity["text"])
            if type_ in types:
                gold.add((entity["start"], entity["end"], type_))
        spans = list(find(row["text"]))
        found = {(s.start, s.end, type_of(s.type, row["text"][s.start : s.end])) for s in spans}
        inside = {place for start, end, _ in found for place in range(start, end)}
        for start, end, type_ in gold:
            (right if (start, end, type_) in found else missed)[type_] += 1
            covered[type_] += len(inside.intersection(range(start, end)))
            characters[type_] += end - start
        wrong.update(type_ for start, end, type_ in found - gold)
    result = {}
    for type_ in sorted(types):
        precision = right[type_] / max(1, right[type_] + wrong[type_])
        recall = right[type_] / max(1, right[type_] + missed[type_])
        result[type_] = {
            "gold": right[type_] + missed[type_],
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / max(1e-9, precision + recall),
            "characters": covered[type_] / max(1, characters[type_]),
        }
    return result


def by_taggers(data: Path, run: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What each arm of the run finds, alone and beside the rules."""
    labels, types = MEDDOCAN | BEYOND_RULES, {*MEDDOCAN.values(), *BEYOND_RULES.values(), "postcode"}
    rules = PersonalDataConfig(types=list(get_args(PersonalType)))
    result = {}
    for folder in sorted((run / "stages").glob("*")):
        if (folder / "scorer").exists():
            known = set(load_scorer(folder / "scorer").labels)
            given = {label: type_ for label, type_ in labels.items() if label in known}
            recognize = cache(recognizer_of(TaggerConfig(path=str(folder), labels=given), Path()))
            name = re.sub(r"-s\d+-[0-9a-f]+$", "", folder.name)
            result[name] = scores(data, recognize, types)
            result[f"rules and {name}"] = scores(data, Redactor(rules, [recognize]).spans, types)
            result[name]["outside"] = outside(data, recognize)
            result[f"rules and {name}"]["outside"] = outside(data, Redactor(rules, [recognize]).spans)
    return result


def outside(data: Path, find: Callable[[str], Iterable[Span]]) -> dict[str, float]:
    """The share of what is found, in characters, that no mark of any type covers."""
    found = beside = 0
    for row in read_jsonl(data / "meddocan" / "test.jsonl.gz"):
        marked = {place for e in row["entities"] for place in range(e["start"], e["end"])}
        places = {place for span in find(row["text"]) for place in range(span.start, span.end)}
        found, beside = found + len(places), beside + len(places - marked)
    return {"share": beside / max(1, found)}


PRESIDIO = {"EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "DATE_TIME": "date"}


def presidio() -> Callable[[str], list[Span]]:
    """presidio's own Spanish and general recognizers with a blank Spanish spaCy model: no names, no places."""
    import spacy
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__(models=[{"lang_code": "es", "model_name": "blank"}])
            self.nlp = {"es": spacy.blank("es")}

        def load(self) -> None: ...

    registry = RecognizerRegistry(supported_languages=["es"])
    registry.load_predefined_recognizers(languages=["es"])
    engine = AnalyzerEngine(registry=registry, nlp_engine=Blank(), supported_languages=["es"])

    def find(text: str) -> list[Span]:
        found = engine.analyze(text, language="es", score_threshold=0.3)
        return [Span(r.start, r.end, PRESIDIO[r.entity_type]) for r in found if r.entity_type in PRESIDIO]

    return find


def against_datatrove(texts: list[str], out: Path) -> dict[str, Any]:
    """Decisions and seconds of the same filters, datatrove's with its own words (spaCy's)."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
    from datatrove.utils.hashing import HashConfig

    stop_words = gopher.STOP_WORDS["es"]
    theirs_repetition = GopherRepetitionFilter(language="spa_Latn")
    theirs_quality = GopherQualityFilter(language="spa_Latn", stop_words=stop_words)
    # Its default, xxhash, fails with the version of today (4), which `datasets` brings.
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    signatures = MinhashDedupSignature(str(out / "signatures"), config, language="spa_Latn")
    hasher = MinHasher(MinHashConfig())
    theirs_repetition.filter(Document(text="La casa de la niña.", id="warm"))
    pairs: dict[str, tuple[Callable[[str], Any], Callable[[str], Any]]] = {
        "repetition": (
            lambda t: gopher.repetition(t, gopher.RepetitionConfig()) is None,
            lambda t: theirs_repetition.filter(Document(text=t, id="x")) is True,
        ),
        "quality": (
            lambda t: gopher.quality(t, gopher.QualityConfig(), frozenset(stop_words)) is None,
            lambda t: theirs_quality.filter(Document(text=t, id="x")) is True,
        ),
        "MinHash signatures": (hasher.bands, lambda t: signatures.get_signature(signatures.get_shingles(t))),
    }
    result = {}
    for name, (ours, theirs) in pairs.items():
        seconds, answers = [], []
        for judge in (ours, theirs):
            started = time.process_time()
            answers.append([judge(text) for text in texts])
            seconds.append(time.process_time() - started)
        row: dict[str, Any] = {"documents": len(texts), "seconds": seconds[0], "datatrove_seconds": seconds[1]}
        if name != "MinHash signatures":
            row["same"] = sum(a == b for a, b in zip(*answers, strict=True))
            row["dropped"] = sum(not a for a in answers[0])
            row["datatrove_dropped"] = sum(not a for a in answers[1])
        result[name] = row
    return result


def processor_seconds() -> float:
    """Of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main(data: Path, out: Path) -> None:
    draw = random.Random(SEED)  # noqa: S311 - nothing secret is drawn
    make_folder(out)
    documents = base_documents(data)
    planted, look = plant(documents, data, draw)
    config = write_sources(out, documents, planted, draw)
    started, cpu = time.perf_counter(), processor_seconds()
    tally = curate(config, base=out, folder=out, items=look["items"], watch=QUIET)
    seconds = {"wall": time.perf_counter() - started, "cpu": processor_seconds() - cpu}
    card = make_card(config, tally, base=out, folder=out)
    write_text(out / "card.html", render_card(card))
    kept = {row["id"]: row["text"] for row in rows(out / OUTPUT)}
    redactor = Redactor(PersonalDataConfig(types=list(get_args(PersonalType))))
    result: dict[str, Any] = {
        "card": {
            name: card[name]
            for name in ("documents_in", "bytes_in", "output", "sources", "steps", "set_aside", "languages")
        },
        "seconds": seconds,
        "recovery": recovery(kept, planted, look, documents),
        "meddocan": scores(data, redactor.spans, {*MEDDOCAN.values(), "postcode"}),
        "free_text": in_free_text(data),
    }
    write_json(out / "curation.json", result)
    sample = draw.sample([d["text"] for d in documents + planted], SAMPLED)
    result["datatrove"] = against_datatrove(sample, out)
    write_json(out / "curation.json", result)
    result["presidio"] = scores(data, presidio(), set(PRESIDIO.values()))
    write_json(STUDIES / "curation.json", result)
    write_page(result, STUDIES / "curation.md")


def in_free_text(data: Path) -> dict[str, int]:
    """What the default rules find in published clinical cases, where hardly anything is anybody's."""
    redactor, found = Redactor(PersonalDataConfig()), Counter[str]()
    for row in read_jsonl(data / "es_medical_raw" / "es_clinical_cases.jsonl.gz")[:FREE_TEXT]:
        found.update(span.type for span in redactor.spans(row["text"]))
    return dict(found)


def add_taggers(data: Path, run: Path) -> None:
    result = json.loads((STUDIES / "curation.json").read_text(encoding="utf-8"))
    redactor = Redactor(PersonalDataConfig(types=list(get_args(PersonalType))))
    result["meddocan"] = scores(data, redactor.spans, {*MEDDOCAN.values(), "postcode"})
    result["meddocan_outside"] = outside(data, redactor.spans)
    result["free_text"] = in_free_text(data)
    result["taggers"] = by_taggers(data, run)
    write_json(STUDIES / "curation.json", result)
    write_page(result, STUDIES / "curation.md")


if __name__ == "__main__":
    if sys.argv[2] == "--taggers":
        add_taggers(Path(sys.argv[1]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
