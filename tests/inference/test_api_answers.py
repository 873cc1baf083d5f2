"""Labels read from an endpoint's answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from quilate.inference.api_answers import from_first_token, from_text, label_named, likelihood, text_of

LABELS = ["neumonía", "neumonía bilateral", "piel", "ojo izquierdo"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("piel", 2),
        (" Piel.\n", 2),
        ("**PIEL**", 2),
        ("«ojo izquierdo».", 3),
        ("neumonía bilateral", 1),
        ("neumonía, sin duda", 0),
        ("Neumonía bilateral (grave)\npiel", 1),
        ("ojo izq", 3),
        ("El servicio es piel", 2),
        ("Se trata de neumonía bilateral.", 1),
        ("neumon", None),  # cut where two labels still begin so
        ("piel u ojo izquierdo", 2),  # it begins with one
        ("puede ser piel u ojo izquierdo", None),
        ("pieles", None),
        ("", None),
        ("no lo sé", None),
    ],
)
def test_the_label_that_an_answer_names(text: str, label: int | None) -> None:
    assert label_named(text, LABELS) == label


def chat(text: str, listed: list[tuple[str, float]] | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"message": {"content": text}}
    if listed is not None:
        choice["logprobs"] = {"content": [{"top_logprobs": [{"token": t, "logprob": p} for t, p in listed]}]}
    return {"choices": [choice]}


def test_text_alone() -> None:
    named = from_text(chat("piel"), LABELS)
    assert np.exp(named.scores).sum() == pytest.approx(1) and named.scores.argmax() == 2 and not named.from_logprobs
    lost = from_text(chat("¿?"), LABELS)
    assert not lost.named and np.ptp(lost.scores) == 0
    assert text_of(chat(None)) == ""  # type: ignore[arg-type]
    parts = [{"type": "text", "text": "pi"}, {"type": "refusal", "refusal": "no"}, {"type": "text", "text": "el"}]
    assert text_of({"choices": [{"message": {"content": parts}}]}) == "piel"
    for kept_back in ({"finish_reason": "content_filter"}, {"message": {"tool_calls": []}}):
        assert not from_text({"choices": [kept_back]}, LABELS).named
    for broken in (
        {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"text": 3}]}, {"choices": 7},
        {"choices": [{"message": "piel"}]}, {"choices": [{"message": {"content": ["piel"]}}]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="answer"):
            text_of(broken)


def test_first_tokens_add_up_and_shared_ones_follow_the_text() -> None:
    listed = [("p", math.log(0.4)), (" P", math.log(0.1)), ("neu", math.log(0.3)), ("xyz", math.log(0.05))]
    found = from_first_token(chat("neumonía bilateral", listed), LABELS)
    assert found.from_logprobs
    assert np.exp(found.scores[[1, 2]]) == pytest.approx([0.3, 0.5])
    assert found.scores[0] == found.scores[3] == pytest.approx(math.log(0.05) - 1)
    unclear = from_first_token(chat("?", listed), LABELS)
    assert np.exp(unclear.scores[[0, 1]]) == pytest.approx([0.15, 0.15])


@pytest.mark.parametrize(
    ("text", "listed", "label"),
    [
        ("El servicio es piel", [("El", -0.01), ("p", -6.0)], 2),  # it begins "electrofisiología"
        ("El más grave de todos", [("El", -0.01), ("p", -6.0)], 2),  # names none; the other tokens are left
        ("El", [("El", -0.01), ("p", -6.0)], 4),  # cut after one token: all there is
        ("piel", [("pi", -0.2), ("p", -3.0), ("El", -2.0)], 2),
    ],
)
def test_a_token_that_began_something_else_is_no_labels(text: str, listed: Any, label: int) -> None:
    found = from_first_token(chat(text, listed), [*LABELS, "electrofisiología"])
    assert found.scores.argmax() == label
    listed = [("A", -6.0), ("B", -9.0), ("The", -0.1)]
    assert from_first_token(chat("The answer is B", listed), ["A", "B"]).scores.argmax() == 1


@pytest.mark.parametrize("listed", [None, [], [("zz", -0.1)], [("piel", float("nan"))], [("", -0.1)]])
def test_without_a_labels_token_the_text_counts(listed: list[tuple[str, float]] | None) -> None:
    found = from_first_token(chat("piel", listed), LABELS)
    assert not found.from_logprobs and found.scores.argmax() == 2


def echo(tokens: list[str], logprobs: list[float | None]) -> dict[str, Any]:
    offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    return {"choices": [{"text": "".join(tokens), "logprobs": {
        "tokens": tokens, "token_logprobs": logprobs, "text_offset": offsets}}]}  # fmt: skip


def test_the_likelihood_is_of_the_answers_tokens_alone() -> None:
    response = echo(["Es", ":", " pi", "el", " o"], [None, -9.0, -1.0, -0.5, -7.0])
    for normalization, expected in (("sum", -1.5), ("mean", -0.75), ("first", -1.0), ("characters", -1.5 / 4)):
        assert likelihood(response, "Es:", " piel", normalization) == pytest.approx(expected)  # type: ignore[arg-type]
    across = echo(["Es", ": pi", "el", "!"], [None, -1.0, -0.5, -7.0])  # one token holds the border
    assert likelihood(across, "Es:", " piel", "sum") == pytest.approx(-1.5)


def test_no_likelihood_where_the_server_gives_none_or_another_text() -> None:
    assert likelihood(chat("piel"), "Es:", " piel", "sum") is None
    assert likelihood(echo(["E"], [None]), "Es:", " piel", "sum") is None
    broken = echo(["Es", ":", " piel"], [None, -1.0, -0.5])
    broken["choices"][0]["logprobs"]["token_logprobs"] = [None, "x", {}]
    with pytest.raises(ValueError, match="malformed"):
        likelihood(broken, "Es:", " piel", "sum")
