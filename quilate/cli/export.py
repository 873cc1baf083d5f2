"""`quilate export lm-eval RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    format: Literal["lm-eval"],
    run: Path,
    *,
    arm: str | None = None,
    out: Path | None = None,
    with_text: bool = False,
    json: bool = False,
) -> None:
    """Write an arm's test items as a task for another program.

    Parameters
    ----------
    format
        lm-eval: EleutherAI's lm-evaluation-harness; its `acc` (of `normalization: characters` its `acc_norm`) on the
        arm's model is then the arm's accuracy.
    run
        The run's folder.
    arm
        The arm; by default the only one, or the recommended one.
    out
        Where to write; RUN/lm-eval by default.
    with_text
        Allow the items' texts to be written; the task consists of them.
    json
        Print the paths as JSON.
    """
    import json as json_module

    from quilate.cli.arms import choose_arm, task_of
    from quilate.errors import UsageError
    from quilate.inference.choice import ChoicePromptScorer
    from quilate.inference.lm_eval import write_lm_eval
    from quilate.inference.scorer import PromptScorer

    if not with_text:
        raise UsageError(
            "an exported task holds the texts of the test items", hint="add --with-text if they may go out"
        )
    chosen = choose_arm(run, arm)
    if not isinstance(chosen.scorer, PromptScorer | ChoicePromptScorer):
        raise UsageError(
            f"arm '{chosen.name}' chooses no label or option by prompting a model here",
            hint="name a fine-tuned or an icl arm of classification or multiple choice with --arm",
        )
    task = task_of(run)
    path, metric = write_lm_eval(chosen.scorer, f"{task.name} {chosen.name}", task.test, out or run / "lm-eval")
    model = chosen.scorer.model_path.resolve()
    if json:
        print(json_module.dumps({"task": str(path), "model": str(model), "metric": metric}, ensure_ascii=False))
        return
    print(f"{path} (its `{metric}` is the arm's accuracy)")
    print(f"lm_eval --model hf --model_args pretrained={model} --include_path {path.parent} --tasks {path.stem}")
