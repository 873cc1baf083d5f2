"""A text cut into its sentences: sentencex's rules and abbreviations, line by line, less what cannot be a boundary.

Chosen by `benchmarks/sentences.py`. What is corrected here was seen in clinical documents that are not in its gold
standard: sentencex cuts after the full stop of "1.ª línea", "E. coli", "i.v. cada 8 h" and of a list's "1.", and does
not cut after "4,5 cm.", which it takes for an abbreviation.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

from quilate.errors import DataError, QuilateError

LANGUAGES = (
    "am", "an", "ar", "ast", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "fi", "fr", "gl", "gu", "hi", "hy",
    "it", "ja", "kk", "kn", "ml", "mr", "my", "nl", "oc", "pa", "pl", "pt", "ru", "sk", "ta", "te", "uk",
)  # fmt: skip
"""Languages for which sentencex has rules, its own or a close relative's (es for an and ast, pt for gl, sk for cs, ca
for oc). For any other it would silently take the English ones."""

_LINE_BREAK = re.compile(r"(?:\r\n?|\n)+")
_WORD = re.compile(r"(?![^\W\d_]\))[^\W\d_]+\d?")  # not the "a)" of a list
_NEAR = 80  # characters looked at on either side of a possible boundary; guess
# Symbols of units carry no full stop of their own: after one, and before a capital, it ends the sentence.
_UNIT_END = re.compile(r"[\d°º]\s?(?:[ckm]?m|[km]?g|L|C|min|s|seg)\.\s+(?=(?!Hg\b)[^\W\d_])")
_INITIAL = re.compile(r"(?:\A|\W)[^\W\d_]\.\Z")


def sentences(text: str, language: str) -> list[str]:
    """The sentences of `text` in order, stripped; nothing is lost but whitespace between them.

    A line break ends a sentence (clinical headings and list entries have no full stop), unless the line ends openly
    and the next goes on in lower case, as hard-wrapped text does. Inside a sentence line breaks stay as they are.
    Whitespace alone gives an empty list.

    Raises:
        DataError: there are no rules for `language`.
    """
    if language not in LANGUAGES:
        raise DataError(
            f"there are no rules for sentences in '{language}'",
            hint=f"take one of {', '.join(LANGUAGES)}, or other documents than sentences",
        )
    return [sentence for block in _blocks(text) for sentence in _cut(block, language)]


def _blocks(text: str) -> list[str]:
    """The lines, with hard-wrapped ones still together."""
    starts = [0]
    for line_break in _LINE_BREAK.finditer(text):
        before = text[max(starts[-1], line_break.start() - _NEAR) : line_break.start()]
        after = text[line_break.end() : line_break.end() + _NEAR]
        blank_line = len(line_break[0].replace("\r\n", "\n")) > 1
        open_end = before.rstrip().rstrip("\"'”’»)]")[-1:] not in ("", *".?!:;…")
        if blank_line or not open_end or not _goes_on(after.lstrip()):
            starts.append(line_break.end())
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _cut(block: str, language: str) -> list[str]:
    found: list[str] = []
    start = end = 0
    pieces = _pieces(block, language)
    for index, piece in enumerate(pieces):
        end += len(piece)
        if index == len(pieces) - 1 or _is_boundary(piece, block[end : end + _NEAR]):
            found.append(block[start:end].strip())
            start = end
    return [sentence for sentence in found if sentence]


def _pieces(block: str, language: str) -> list[str]:
    """sentencex's sentences, cut further where one ends with a unit; together they are `block`, breaks as spaces.

    Raises:
        QuilateError: sentencex lost or added characters.
    """
    import sentencex

    found: list[str] = sentencex.segment(language, block.replace("\r", " ").replace("\n", " "))
    if sum(map(len, found)) != len(block):
        raise QuilateError(f"sentencex changed a text of {len(block)} characters", hint="please report its version")
    pieces = []
    for piece in found:
        cuts = [0, *(match.end() for match in _UNIT_END.finditer(piece)), len(piece)]
        pieces += [piece[start:end] for start, end in pairwise(cuts)]
    return pieces


def _is_boundary(left: str, right: str) -> bool:
    """Whether a sentence may end between sentencex's piece `left` and what follows it."""
    if not any(character.isalpha() for character in left):
        return False  # "1." of a list entry
    following = right.lstrip()
    if _goes_on(following):
        return False  # "E. coli", "contraste i.v. de tórax"; about one in ten is a sentence that lacks its capital
    if left[-1].isspace() or right[:1].isspace() or not following:
        return True
    # No space: "sin soplos.Abdomen blando" is a boundary, "6 cél./mm3" and "T.A.C." are not.
    opens = following[0].isalpha() or following[0] in "¿¡" or unicodedata.category(following[0]) in ("Ps", "Pi")
    return opens and not _INITIAL.search(left)


def _goes_on(following: str) -> bool:
    """Whether it starts with a word in lower case; "pT3N0", "pH" and "p53" are names that may begin a sentence."""
    word = _WORD.match(following)
    return word is not None and word[0].islower() and not word[0][-1].isdigit()
