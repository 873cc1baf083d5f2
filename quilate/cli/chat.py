"""`quilate chat MODEL`."""

from __future__ import annotations

from pathlib import Path


def chat(
    model: str,
    *,
    adapter: Path | None = None,
    system: str | None = None,
    temperature: float = 0.7,
    max_new_tokens: int = 512,
) -> None:
    """Talk to a model; the answer appears as it is written. /new starts again, /exit or Ctrl-D leaves.

    Parameters
    ----------
    model
        A model directory, a .gguf file, package:NAME or a hub name.
    adapter
        A PEFT adapter directory made on that model.
    system
        The system prompt.
    temperature
        0 is greedy: the same answer every time.
    max_new_tokens
        The longest answer.
    """
    import sys

    from quilate.cli.display import result_console
    from quilate.errors import UsageError
    from quilate.inference.chat import ChatSession
    from quilate.models.source import resolve_model

    if temperature < 0:
        raise UsageError(f"--temperature {temperature}: it must be 0 or more", hint="0 is greedy, 0.7 is usual")
    notes = result_console()
    local = resolve_model(model, note=lambda line: print(line, file=sys.stderr))
    conversation = ChatSession(local.path, adapter=adapter, system=system)
    if sys.stdin.isatty():
        notes.print(f"{local.path.name}: /new starts again, /exit leaves", style="dim")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/new":
            conversation = conversation.fresh(system)
        elif line:
            pieces = conversation.answer(line, max_new_tokens=max_new_tokens, temperature=temperature)
            try:
                for piece in pieces:
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:
                pieces.close()
            print()
