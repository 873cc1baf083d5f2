"""Write the tables of `docs/recipes.md` again from the code: `python docs/generate.py`.

The page is written by hand but for what stands between `<!-- keys: CLASS -->` and `<!-- end -->`: there the keys of a
config class go. A test fails when the page differs from what this script would write.

Keys that stages which train share are written once, under `SHARED`; their own tables end with the names of these keys.
"""

from __future__ import annotations

import re
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from quilate.config import Config, Key, explain
from quilate.phases.example_training import ExampleTraining
from quilate.recipe.schema import Recipe

PAGE = Path(__file__).with_name("recipes.md")
SHARED = ExampleTraining
_BLOCK = re.compile(r"<!-- keys: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def config_classes(annotation: typing.Any = Recipe) -> Iterator[type[Config]]:
    """Every config class that a recipe can hold, outer ones first."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
        for field in annotation.model_fields.values():
            yield from config_classes(field.annotation)
    for argument in typing.get_args(annotation):
        yield from config_classes(argument)


def table(config_class: type[Config], places: dict[str, str]) -> str:
    """The keys of one class as a Markdown table; `places` maps other classes' names to links."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    elsewhere = shared_keys(config_class)
    for key in explain(config_class):
        if key in elsewhere:
            continue
        kind = re.sub(r"\w+", lambda word: places.get(word[0], word[0]), key.type)
        default = key.default if key.default in ("required", "see its own table") else f"`{key.default}`"
        rows.append(f"| `{key.name}` | {kind} | {default} | {key.doc} |")
    if elsewhere:
        names = ", ".join(f"`{key.name}`" for key in elsewhere)
        link = places[SHARED.__name__].replace("[K", "[k")
        rows += ["", f"And of the {link}, just the same here: {names}."]
    return "\n".join(rows)


def shared_keys(config_class: type[Config]) -> list[Key]:
    """The keys of a stage that trains which are, to the default and the last word, those of all that train."""
    own = list(explain(config_class))
    trains = config_class is not SHARED and any(key.name == "guards" for key in own)
    return [key for key in own if key in list(explain(SHARED))] if trains else []


def anchors(page: str) -> Iterator[tuple[int, str]]:
    """Each heading's line number and anchor, as GitHub names them: the second `Limits` is `limits-1`."""
    seen: Counter[str] = Counter()
    fenced = False
    for number, line in enumerate(page.splitlines()):
        fenced ^= line.startswith("```")
        if fenced or not line.startswith("#"):
            continue
        anchor = re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        yield number, anchor + (f"-{seen[anchor]}" if seen[anchor] else "")
        seen[anchor] += 1


def render(page: str) -> str:
    """The page with every table as the code has it."""
    classes = {config_class.__name__: config_class for config_class in (*config_classes(), SHARED)}
    places: dict[str, str] = {}
    anchor_of = dict(anchors(page))
    heading = anchor = ""
    for number, line in enumerate(page.splitlines()):
        if number in anchor_of:
            heading, anchor = line.lstrip("# "), anchor_of[number]
        elif marker := _BLOCK.match(f"{line}\n<!-- end -->"):
            places[marker[1]] = f"[{heading.replace('`', '')}](#{anchor})"

    def fill(block: re.Match[str]) -> str:
        return f"<!-- keys: {block[1]} -->\n{table(classes[block[1]], places)}\n<!-- end -->"

    return _BLOCK.sub(fill, page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
