"""What an OpenAI-compatible endpoint's answer says of the labels. Pure functions of the answer's JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quilate.inference.scores import Normalization
from quilate.tasks.records import Record, parse_records

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
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair can be kept nowhere


def answer_of(response: Mapping[str, Any]) -> str:
    """What the model wrote, without the thoughts that some write first; nothing if it did not get beyond them."""
    return re.sub(r"\A\s*<think>.*?(?:</think>|\Z)", "", text_of(response), flags=re.DOTALL)


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

    Looked for in the first line, then in the whole text; in this order: it begins with an option in words ("Hepatitis
    A" is no letter), or with a letter that stands by itself ("B", "**b)** ...", "B es ...", "A Insulina" of the option
    "Insulina", but not "A la vista de ..."); a letter follows a cue ("la respuesta correcta es la B"); just one capital
    stands by itself. Options in words and what is denied ("no la A") do not count for the last two. At last the option
    that the text names in words.
    """

    def named(text: str, letters: Sequence[str]) -> int | None:
        for part in (text.strip().partition("\n")[0], text):
            letter = _letter_of(part, letters, options)
            if letter is not None:
                return letter
        return label_named(text, options)

    return named


# Single capitals that are also words, in Spanish or English: they need more around them to be an option's letter.
_WORDS, _OTHERS = "AEIOUY", "B-DF-HJ-NP-TV-XZ"
_SURE = r"(?=[ \t]*(?:[^\w\s]|\n|\Z)|\s+(?:es|is|porque|because|ya)\b)"
_ALONE = re.compile(rf"(?<!\w)(?:([{_WORDS}])(?!\w){_SURE}|([{_OTHERS}])(?!\w))")
_CUE = re.compile(
    r"(?:respuesta|opci[oó]n|alternativa|letra|correcta|answer|option|letter|correct)[\s\W_]{1,4}"
    r"(?:(?:respuesta|opci[oó]n|letra|correcta|final|es|la|answer|option|letter|correct|is|the)[\s\W_]{1,4})*"
    r"(?:([A-Z])(?!\w)|([a-z])(?!\w)(?=[ \t]*(?:[^\w\s]|\n|\Z)))",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\b(?:no|ni|not|nor)\b(?:\s+(?:es|la|is|the|opci[oó]n|option))*[\s*]+[A-Z](?!\w)", re.IGNORECASE)


def _letter_of(text: str, letters: Sequence[str], options: Sequence[str]) -> int | None:
    plain, known = _plain(text), [_plain(option) for option in options]
    begun = [i for i, option in enumerate(known) if len(option) > 1 and re.match(rf"{re.escape(option)}(?!\w)", plain)]
    if begun:
        return max(begun, key=lambda i: len(known[i]))
    first = re.match(r"[\s\W_]*([^\W\d_])(?!\w)", text)
    if first is not None and first[1].upper() in letters:
        place, rest = letters.index(first[1].upper()), text[first.end() :]
        sure = _ALONE.match(first[1] + rest) or re.match(r"[ \t]*(?:[^\w\s]|\n|\Z)", rest) or not rest.strip()
        if sure or _plain(rest).startswith(known[place]):
            return place
    for option in sorted((o for o in options if len(o) > 1), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(option)}(?!\w)", "…", text, flags=re.IGNORECASE)
    text = _DENIED.sub("…", text)
    for cue in _CUE.finditer(text):
        letter = next(filter(None, cue.groups()))
        if letter.upper() in letters and (letter.isupper() or re.match(r"[ \t]*(?:[^\w\s]|\n|\Z)", text[cue.end() :])):
            return letters.index(letter.upper())
    alone = {letter for match in _ALONE.finditer(text) for letter in match.groups() if letter in letters}
    return letters.index(alone.pop()) if len(alone) == 1 else None


@dataclass(frozen=True)
class ListedRecords:
    """The records of an answer; `malformed` entries of its list lack a label or a text; `valid`: there was a list."""

    records: list[Record]
    malformed: int
    valid: bool


def records_in(text: str) -> ListedRecords:
    """The list of records in an answer that may be fenced, introduced or wrapped: the last one; of a list that was cut
    short, its whole records."""
    found: list[dict[str, Any]] | None = None
    decoder, place = json.JSONDecoder(), text.find("[")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if all(isinstance(entry, dict) for entry in value) and (value or found is None):
                found = value
        place = text.find("[", end)
    begun = re.search(r"\[\s*\{", text)
    if not found and begun is not None:
        whole = parse_records(text[begun.start() :]).records
        return ListedRecords(whole, 0, bool(whole))
    if found is None:
        return ListedRecords([], 0, False)
    texts = [(entry.get("label"), entry.get("text")) for entry in found]
    good = [Record(label, said) for label, said in texts if isinstance(label, str) and isinstance(said, str)]
    return ListedRecords(good, len(found) - len(good), bool(good) or not found)


def was_cut(response: Mapping[str, Any]) -> bool:
    """Whether an answer ended because it had as many tokens as it may have."""
    return bool(response["choices"][0].get("finish_reason") == "length")


def from_text(response: Mapping[str, Any], verbalizers: Sequence[str], named: Named = label_named) -> LabelAnswer:
    """The scores of an answer that has a text only."""
    label = named(answer_of(response), verbalizers)
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
    text = answer_of(response)
    named_one = named(text, verbalizers)
    labels = [_plain(verbalizer) for verbalizer in verbalizers]
    line = _plain(text.strip().partition("\n")[0])
    first, listed = _first_token(response, line)
    if named_one is not None and not (first and labels[named_one].startswith(first)):
        return from_text(response, verbalizers, named)
    agree = [label.startswith(line) or line.startswith(label) for label in labels]
    mass = np.zeros(len(labels))
    for token, logprob in listed:
        begins = [i for i, label in enumerate(labels) if token and label.startswith(token)]
        if line.startswith(token) and named_one is None:
            begins = [i for i in begins if agree[i]]
        if named_one in begins:
            begins = [named_one]
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


def _first_token(response: Mapping[str, Any], line: str) -> tuple[str, list[tuple[str, float]]]:
    """The first token that was written and is more than white space and marks, and (token, log-probability) of the
    likeliest in its place, in either endpoint's form; nothing if there are none."""
    try:
        found = response["choices"][0].get("logprobs") or {}
        if found.get("content"):
            listed = [[(one["token"], one["logprob"]) for one in entry["top_logprobs"]] for entry in found["content"]]
            written = [entry.get("token") for entry in found["content"]]
        else:
            listed = [list(step.items()) for step in found.get("top_logprobs") or []]
            written = found.get("tokens") or [None] * len(listed)
        for token, pairs in zip(written, listed, strict=False):
            finite = [(_plain(one), float(logprob)) for one, logprob in pairs if math.isfinite(float(logprob))]
            # Where the server does not say which token it wrote: the longest one that the text begins with.
            begun = [one for one, _ in finite if one and line.startswith(one)]
            likeliest = max(finite, key=lambda pair: pair[1])[0]
            first = _plain(token) if token is not None else max(begun, key=len, default=likeliest)
            if first:
                return first, finite
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        pass
    return "", []


def _plain(text: str) -> str:
    """For comparison: no case, no quotes or full stops around."""
    return re.sub(r"\s+", " ", text.casefold()).strip(" \t\n\"'«»“”`*.:;,¡!¿?()")
