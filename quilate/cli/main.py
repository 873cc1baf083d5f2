"""`quilate VERB`: the verb table, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from quilate import __version__
from quilate.cli.icl import icl
from quilate.errors import QuilateError, UsageError

# verb -> what it does, in one line; the function of the same name in quilate.cli.VERB is imported when it is called.
VERBS = {
    "init": "Write a recipe for your own labelled file.",
    "plan": "Say what a recipe will cost before it runs: tokens, FLOPs, memory, time and price of every stage.",
    "run": "Run a recipe to its end: every arm, every seed, the report.",
    "status": "Show where each stage of a run stands.",
    "report": "Show a finished run's evidence; write it again in another language, with texts, or as Markdown.",
    "predict": "Label new rows with an arm of a finished run.",
    "evaluate": "Score one arm of a finished classification run on another labelled file.",
    "export": "Write an arm's test items as a task for lm-evaluation-harness.",
    "curate": "Make raw sources into a clean corpus, with a data card of what was done to them.",
    "pretrain": "Train a new model, tokenizer included, on raw text, without a recipe.",
    "adapt": "Train a model further on raw text of your domain, without a recipe.",
    "finetune": "Fine-tune a model on a labelled file, without a recipe.",
    "sft": "Train a model on conversations, without a recipe.",
    "align": "Train a model on human judgements of answers or on rewards (DPO, PPO, GRPO, ...), without a recipe.",
    "icl": "Prompt a model with solved examples, without a recipe; show the prompt; or `analyse` what it does.",
    "data": "Preview conversations: what is dropped, and which text a model would learn.",
    "verify": "Certify a fine-tuned stage on your own model and data: what it trained on, and that it trained rightly.",
    "chat": "Talk to a model, with or without an adapter.",
}

SUBVERBS = {"analyse": "Compare in-context learning with fine-tuning on the same examples, beside controls."}

app = App(
    name="quilate",
    help="Raise a language model through its phases and measure what each phase was worth.",
    version=__version__,
    result_action="return_value",
)
for _verb, _help in VERBS.items():
    if _verb == "icl":  # the one verb with another one below it
        _app = App(name="icl", help=_help, default_command=icl)
        for _name, _what in SUBVERBS.items():
            _app.command(f"quilate.cli.{_name}:{_name}", name=_name, help=_what)
        app.command(_app)
    else:
        app.command(f"quilate.cli.{_verb}:{_verb}", name=_verb, help=_help)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with the codes of `quilate.errors`."""
    # What one library asks of another is for their developers; Python shows it to everybody. `-W` still wins.
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")
    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code instead of leaving."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
        return 0
    except QuilateError as error:
        code, message, hint = error.exit_code, error.message, error.hint
    except CycloptsError as error:
        code, message, hint = UsageError.exit_code, str(error), "quilate --help, or quilate VERB --help"
    except KeyboardInterrupt:
        code, message, hint = 75, "stopped", None
    except BrokenPipeError:
        return 0  # the reader of our output (head, say) has seen enough
    if "--json" in arguments:
        import json

        print(json.dumps({"error": message, "hint": hint, "exit_code": code}, ensure_ascii=False))
    else:
        print(f"quilate: {message}" + (f"\n  what to do: {hint}" if hint else ""), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
