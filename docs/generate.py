"""Write the tables of `docs/recipes.md` again from the code: `python docs/generate.py`.

The page is written by hand but for what stands between `<!-- keys: CLASS -->` and `<!-- end -->`: there the keys of a
config class go. A test fails when the page differs from what this script would write.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path

from quilate.config import Config, explain
from quilate.recipe.schema import Recipe

PAGE = Path(__file__).with_name("recipes.md")
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
    for key in explain(config_class):
        kind = re.sub(r"\w+", lambda word: places.get(word[0], word[0]), key.type)
        default = key.default if key.default in ("required", "see its own table") else f"`{key.default}`"
        rows.append(f"| `{key.name}` | {kind} | {default} | {key.doc} |")
    return "\n".join(rows)


def render(page: str) -> str:
    """The page with every table as the code has it."""
    classes = {config_class.__name__: config_class for config_class in config_classes()}
    places: dict[str, str] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif marker := _BLOCK.match(f"{line}\n<!-- end -->"):
            anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            places[marker[1]] = f"[{heading.replace('`', '')}](#{anchor})"

    def fill(block: re.Match[str]) -> str:
        return f"<!-- keys: {block[1]} -->\n{table(classes[block[1]], places)}\n<!-- end -->"

    return _BLOCK.sub(fill, page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
