"""The data card: what came in, what went out at every step and by which rule, from where, under which licence."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from quilate.curation.config import CurateConfig
from quilate.curation.documents import REASONS
from quilate.curation.pipeline import OUTPUT
from quilate.curation.sources import content_of_source, files_of
from quilate.curation.tally import STEPS, Step, Tally
from quilate.files import sha256_of_file

SCHEMA = 1

_ALWAYS = ("extraction", "near_duplicates")  # pages must be read; one id is one document


def make_card(config: CurateConfig, tally: Tally, *, base: Path, folder: Path) -> dict[str, Any]:
    """The card as JSON-able values; it holds no text and no personal data.

    Args:
        folder: where `curate` left its output.
    """
    personal = tally.steps["personal_data"].changed
    return {
        "schema": SCHEMA,
        "documents_in": sum(source.documents_in for source in tally.sources.values()),
        "bytes_in": sum(source.bytes_in for source in tally.sources.values()),
        "output": {
            "file": OUTPUT,
            "documents": sum(source.documents_out for source in tally.sources.values()),
            "bytes": sum(source.bytes_out for source in tally.sources.values()),
            "sha256": sha256_of_file(folder / OUTPUT),
        },
        "sources": [_source(name, config, tally, base) for name in config.sources],
        "steps": [
            {"name": name, "on": name in _ALWAYS or getattr(config, name) is not None}
            | _numbers(tally.steps[name], name)
            for name in STEPS
        ],
        "set_aside": dict(tally.refused.most_common()),
        "languages": dict(tally.languages.most_common()),
        "encodings": dict(tally.encodings.most_common()),
        "personal_data": dict(personal.most_common()),
        "config": config.as_json(),
        "versions": {name: version(name) for name in ("quilate", "py3langid", "pyarrow")},
    }


def _source(name: str, config: CurateConfig, tally: Tally, base: Path) -> dict[str, Any]:
    source = config.sources[name]
    _, files = files_of(source, base)
    numbers = tally.source(name)
    return {
        "name": name,
        "path": source.path,
        "licence": source.licence,
        "files": len(files),
        "sha256": sha256_of_file(files[0]) if len(files) == 1 else content_of_source(source, base),
        "documents_in": numbers.documents_in,
        "bytes_in": numbers.bytes_in,
        "documents_out": numbers.documents_out,
        "bytes_out": numbers.bytes_out,
    }


def _numbers(step: Step, name: str) -> dict[str, Any]:
    rules = {rule: {"documents": n, "bytes": step.dropped_bytes[rule]} for rule, n in step.dropped.most_common()}
    changed = {} if name == "personal_data" else dict(step.changed.most_common())
    return {
        "documents_in": step.documents_in,
        "bytes_in": step.bytes_in,
        "documents_out": step.documents_out,
        "bytes_out": step.bytes_out,
        "dropped": rules,
        "changed": {what: n for what, n in changed.items() if n},
    }


def render_card(card: dict[str, Any], examples: dict[str, list[str]] | None = None, lang: str = "en") -> str:
    """The card as one self-contained HTML page: no script, no request.

    Args:
        examples: dropped texts by rule, for `--with-text`.
        lang: "en" or "es".
    """
    environment = Environment(
        loader=PackageLoader("quilate.curation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda n: f"{n:,}".replace(",", "." if lang == "es" else ",")
    environment.filters["size"] = lambda n: _size(n, lang)
    environment.filters["share"] = lambda part, whole: _share(part, whole, lang)
    return environment.get_template("card.html.jinja").render(
        card=card, examples=examples or {}, lang=lang, t=lambda key: _WORDS[key][lang == "es"], reasons=REASONS
    )


def _size(bytes_: int, lang: str) -> str:
    text = f"{bytes_ / 1e6:,.2f} MB" if bytes_ >= 10_000 else f"{bytes_:,} B"
    return text.translate(str.maketrans(",.", ".,")) if lang == "es" else text


def _share(part: int, whole: int, lang: str) -> str:
    text = f"{100 * part / whole:.1f} %" if whole else "–"
    return text.replace(".", ",") if lang == "es" else text


_WORDS = {
    "title": ("Data card", "Ficha de datos"),
    "kept": ("kept", "conservado"),
    "of": ("of", "de"),
    "documents": ("documents", "documentos"),
    "sources": ("Sources", "Fuentes"),
    "source": ("source", "fuente"),
    "licence": ("licence", "licencia"),
    "none": ("not stated", "no indicada"),
    "files": ("files", "archivos"),
    "in": ("in", "entra"),
    "out": ("out", "sale"),
    "steps": ("Steps", "Pasos"),
    "step": ("step", "paso"),
    "lost": ("lost", "perdido"),
    "rule": ("rule", "regla"),
    "off": ("left out", "omitido"),
    "rules": ("Which rule dropped what", "Qué regla descartó qué"),
    "changed": ("What was corrected", "Qué se corrigió"),
    "aside": ("Set aside", "Apartado"),
    "reason": ("reason", "motivo"),
    "meaning": ("what it means", "qué significa"),
    "records": ("records", "registros"),
    "nothing": ("Nothing.", "Nada."),
    "languages": ("Languages found", "Idiomas encontrados"),
    "personal": ("Personal data by type", "Datos personales por tipo"),
    "personal_note": (
        "Counts only; what was found is never shown. Rules find what has a form or a label; see the measured recall.",
        "Solo recuentos; lo encontrado nunca se muestra. Las reglas hallan lo que tiene forma o etiqueta.",
    ),
    "examples": ("Examples of what was dropped", "Ejemplos de lo descartado"),
    "config": ("Thresholds", "Umbrales"),
    "encodings": ("Lines that are not ASCII, by encoding", "Líneas no ASCII, por codificación"),
    "output": ("Output", "Resultado"),
    "urls": ("Addresses", "Direcciones"),
    "extraction": ("Extraction", "Extracción"),
    "language": ("Language", "Idioma"),
    "repetition": ("Repetition (Gopher)", "Repetición (Gopher)"),
    "quality": ("Quality (Gopher)", "Calidad (Gopher)"),
    "lines": ("Lines", "Líneas"),
    "near_duplicates": ("Duplicates (MinHash)", "Duplicados (MinHash)"),
    "substrings": ("Repeated passages", "Pasajes repetidos"),
    "decontaminate": ("Decontamination", "Descontaminación"),
    "personal_data": ("Personal data", "Datos personales"),
}
