"""What an OpenAI-compatible endpoint's answer says of the labels. Pure functions of the answer's JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quilate.inference.scores import Normalization

SURE = 0.9  # guess: the probability of a label that was written out; the temperature fitted on dev corrects it
UNSEEN = 1.0  # guess: nats by which a label absent from the listed tokens is placed below the last of them

# The place of the answer that a text names, among those that are possible; None if it names none, or several.
Named = Callable[[str, Sequence[str]], int | None]


@dataclass(frozen=True)
class LabelAnswer:
    """`scores` [labels], log-probabilities up to a constant; whether they come from log-probabilities of the model, and
    whether the answer names a label at all (if not, all labels score the same)."""

    scores: NDArray[np.float64]
    from_logprobs: bool
    named: bool


def text_of(response: Mapping[str, Any]) -> str:
    """What the model wrote; nothing where it was kept from it (`finish_reason: content_filter`, a tool's call).

    Raises:
        ValueError: the answer does not have the form of one.
    """
    try:
        choice = response["choices"][0]
        text = choice["message"].get("content") if "message" in choice else choice.get("text")
        if isinstance(text, list):  # in parts, some of which are no text
            text = "".join(part["text"] for part in text if part.get("type", "text") == "text")
        stopped = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the answer is malformed: {error}") from error
    if text is None and ("message" in choice or stopped):
        return ""
    if not isinstance(text, str):
        raise ValueError("the answer's text is no text")
    return text


def label_named(text: str, verbalizers: Sequence[str]) -> int | None:
    """The one label that an answer names; None if it names none, or several.

    In this order: the first line is a label; it begins with one (the longest counts); it is the beginning of just one
    label (an answer cut short); just one label occurs in the whole text.
    """
    labels = [_plain(verbalizer) for verbalizer in verbalizers]
    line = _plain(text.strip().partition("\n")[0])
    if line in labels:
        return labels.index(line)
    begun = [i for i, label in enumerate(labels) if re.match(rf"{re.escape(label)}(?!\w)", line)]
    if begun:
        return max(begun, key=lambda i: len(labels[i]))
    cut = [i for i, label in enumerate(labels) if len(line) > 2 and label.startswith(line)]
    if len(cut) == 1:
        return cut[0]
    whole = _plain(text)
    found = [i for i, label in enumerate(labels) if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", whole)]
    longest = [i for i in found if not any(i != j and labels[i] in labels[j] for j in found)]
    return longest[0] if len(longest) == 1 else None


def letter_named(options: Sequence[str]) -> Named:
    """How a text names one of the letters of these options.

    In this order: it begins with a letter that stands by itself ("B", "**b)** ...", "B Insulina" of the option
    "Insulina", but not "A la vista de ..."); just one capital letter stands by itself before a mark or the end ("La
    respuesta es la C."); the text names just one option in words.
    """

    def named(text: str, letters: Sequence[str]) -> int | None:
        begun = re.match(r"[\s\W_]*([^\W\d_])(?!\w)(.*)", text, re.DOTALL)
        if begun is not None and begun[1].upper() in letters:
            place, rest = letters.index(begun[1].upper()), begun[2]
            marked = re.match(r"[ \t]*(?:[^\w\s]|\n|\Z)", rest)
            if marked or _plain(rest).startswith(_plain(options[place])):
                return place
        alone = set(re.findall(r"(?<!\w)([A-Z])(?=[ \t]*(?:[^\w\s]|\n|\Z))", text)) & set(letters)
        return letters.index(alone.pop()) if len(alone) == 1 else label_named(text, options)

    return named


def list_in(text: str) -> str:
    """The JSON list of an answer that may be fenced, introduced or wrapped; all of it where there is no list."""
    start, end = text.find("["), text.rfind("]")
    return text if start < 0 else text[start:] if end < start else text[start : end + 1]


def was_cut(response: Mapping[str, Any]) -> bool:
    """Whether an answer ended because it had as many tokens as it may have."""
    return bool(response["choices"][0].get("finish_reason") == "length")


def from_text(response: Mapping[str, Any], verbalizers: Sequence[str], named: Named = label_named) -> LabelAnswer:
    """The scores of an answer that has a text only."""
    label = named(text_of(response), verbalizers)
    if label is None:
        return LabelAnswer(np.full(len(verbalizers), -math.log(len(verbalizers))), False, False)
    rest = (1 - SURE) / max(1, len(verbalizers) - 1)
    scores = np.full(len(verbalizers), math.log(rest))
    scores[label] = math.log(SURE)
    return LabelAnswer(scores, False, True)


def from_first_token(
    response: Mapping[str, Any], verbalizers: Sequence[str], named: Named = label_named
) -> LabelAnswer:
    """The scores by the log-probabilities listed for the answer's first token; by its text where there are none.

    A token counts for the labels it begins; where it begins several, for the one that the text names, if it is among
    them, else for all of them alike. A token that was written, and turned out to begin something else ("The", of "The
    answer is ...", begins "therapy"), counts for none; where a label is named only after such a beginning, the text
    decides.
    """
    text = text_of(response)
    written = named(text, verbalizers)
    labels = [_plain(verbalizer) for verbalizer in verbalizers]
    line = _plain(text.strip().partition("\n")[0])
    agree = [label.startswith(line) or line.startswith(label) for label in labels]
    if written is not None and not agree[written]:
        return from_text(response, verbalizers, named)
    listed = _top_logprobs(response)
    mass = np.zeros(len(labels))
    for token, logprob in listed:
        begins = [i for i, label in enumerate(labels) if token and label.startswith(token)]
        if line.startswith(token):
            begins = [i for i in begins if agree[i]]
        if written in begins:
            begins = [written]
        for label in begins:
            mass[label] += math.exp(logprob) / len(begins)
    if not mass.any():
        return from_text(response, verbalizers, named)
    floor = min(logprob for _, logprob in listed) - UNSEEN
    scores = np.full(len(labels), floor)
    seen = mass > 0
    scores[seen] = np.log(mass[seen])
    return LabelAnswer(scores, True, True)


def likelihood(response: Mapping[str, Any], prompt: str, answer: str, normalization: Normalization) -> float | None:
    """log P(answer | prompt) from an echoed prompt's log-probabilities; None if the server did not give them.

    Tokens are the answer's if they begin at the prompt's end or after it; one that begins before and reaches into the
    answer is counted too: it holds the answer's beginning.

    Raises:
        ValueError: the log-probabilities do not have the form of ones.
    """
    try:
        found = response["choices"][0].get("logprobs")
        if not found or not found.get("token_logprobs") or not found.get("text_offset"):
            return None
        offsets, tokens, logprobs = found["text_offset"], found["tokens"], found["token_logprobs"]
        end = len(prompt) + len(answer)
        own = [
            float(logprob)
            for offset, token, logprob in zip(offsets, tokens, logprobs, strict=True)
            if len(prompt) < offset + len(token) and offset < end and logprob is not None
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the answer's log-probabilities are malformed: {error}") from error
    if not own or not all(map(math.isfinite, own)) or offsets[-1] < end - len(answer):
        return None
    total = math.fsum(own)
    by = {"mean": total / len(own), "sum": total, "first": own[0], "characters": total / len(answer.strip())}
    return by[normalization]


def _top_logprobs(response: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(token, log-probability) of the first token's likeliest, in either endpoint's form; empty if there are none."""
    try:
        found = response["choices"][0].get("logprobs") or {}
        if found.get("content"):
            pairs = [(entry["token"], entry["logprob"]) for entry in found["content"][0]["top_logprobs"]]
        else:
            pairs = list((found.get("top_logprobs") or [{}])[0].items())
        return [(_plain(token), float(logprob)) for token, logprob in pairs if math.isfinite(float(logprob))]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return []


def _plain(text: str) -> str:
    """For comparison: no case, no quotes or full stops around."""
    return re.sub(r"\s+", " ", text.casefold()).strip(" \t\n\"'«»“”`*.:;,¡!¿?")
