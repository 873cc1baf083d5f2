"""Prompts: their layout, and which variables a template may use."""

from __future__ import annotations

import pytest

from quilate.errors import ConfigError
from quilate.tasks.templates import PromptTemplate


def test_prompt_layout() -> None:
    template = PromptTemplate("Texto: {{ text }}\nEtiqueta:", instruction="Clasifica.", verbalizers=["sí", "no"])
    assert template.prompt("tos") == "Texto: tos\nEtiqueta:"
    assert template.answer("sí") == " sí"
    assert template.demonstration("tos", "sí") == "Texto: tos\nEtiqueta: sí\n\n"
    assert template.prefix([("tos", "sí"), ("frío", "no")]) + template.prompt("ñ") == (
        "Clasifica.\n\nTexto: tos\nEtiqueta: sí\n\nTexto: frío\nEtiqueta: no\n\nTexto: ñ\nEtiqueta:"
    )
    assert PromptTemplate("{{ text }}").prefix() == ""
    assert PromptTemplate("{{ labels }}? {{ text }}", verbalizers=["a", "b"]).prompt("x") == "a, b? x"


def test_prompt_template_refuses_unknown_variables_at_once() -> None:
    with pytest.raises(ConfigError, match="uses 'texto', which is not defined here") as caught:
        PromptTemplate("{{ texto }}")
    assert "text, labels" in str(caught.value)
