"""A small corpus in which every step of curation has something to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quilate.curation.config import CurateConfig
from quilate.curation.pipeline import Watch

QUIET = Watch(lambda *_: None, lambda: None)
ENGLISH = "The patient was admitted with fever, cough and shortness of breath that had started three days earlier. " * 6
NOTICE = 40  # the number of a made text that stands in two documents
ITEM = "¿Cuál de los siguientes fármacos está contraindicado en el embarazo y en la lactancia de la madre?"


MENU = ["Inicio", "Portada", "Contacto", "Buscar", "Archivo", "Ayuda", "Mapa"]
Made = Callable[[int], str]


def write_corpus(folder: Path, texts: list[str], made: Made) -> None:
    """Twelve good texts and, beside them, one reason for every step to act."""
    (folder / "web").mkdir()
    good = [{"id": f"g{i}", "text": text, "url": f"https://a.example/{i}"} for i, text in enumerate(texts)]
    bad = {
        "e": ENGLISH,
        "r": "\n".join([made(20)] * 3),
        "q": "Muy corto, pero de la casa que tiene el sol en los días y a la vez, de la niña.",
        "l": "\n".join([made(21), *MENU]),
        "n": texts[3] + " Alta.",
        "n2": "Nota: " + texts[3],
        "s": f"{made(22)} {made(NOTICE)}",
        "d": f"{made(23)}\n{ITEM}",
        "p": f"{made(24)} Llame al 948 29 65 00 o a ana@casa.example.es.",
        "g0": made(25),  # an id that has been
    }
    more = [{"id": name, "text": text, "url": ""} for name, text in bad.items()] + [
        {"id": "u", "text": made(26), "url": "https://porn.example/xxx"},
        {"id": "a", "text": made(27), "url": "https://a.example/7"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in good + more]
    (folder / "web" / "a.jsonl").write_text("\n".join([*lines[:12], "{roto", *lines[12:]]), encoding="utf-8")
    (folder / "notas.txt").write_text(f"{made(28)} {made(NOTICE)}", encoding="utf-8")


def config_of(**changes: Any) -> CurateConfig:
    sources = {
        "notas": {"path": "notas.txt", "licence": "CC BY 4.0"},
        "web": {"path": "web", "id": "id", "url": "url"},
    }
    language = {"threshold": 0.3}  # scrambled words are less surely Spanish
    return CurateConfig.model_validate({"sources": sources, "language": language} | changes)
