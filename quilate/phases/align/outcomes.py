"""What a policy's completions earn, with intervals, and what it wrote: measured before and after training."""

from __future__ import annotations

from typing import Any

import numpy as np

from quilate.evaluation.rewards import mean_report
from quilate.phases.align.rollouts import Completions
from quilate.phases.align.scoring import Scores
from quilate.phases.stage import StageContext


def outcome_report(written: Completions, scores: Scores) -> dict[str, Any]:
    """The mean score and that of every reward, whole groups of prompts resampled together; JSON-able."""
    groups = [prompt.group for prompt in written.prompts]
    return {
        "score": mean_report(scores.total.numpy(), groups),
        "rewards": {part: mean_report(values.numpy(), groups) for part, values in scores.parts.items()},
        "tokens": round(float(np.mean([len(tokens) for tokens in written.tokens])), 4),
        "ended": round(float(np.mean(written.ended)), 4),
    }


def outcome_rows(written: Completions, scores: Scores) -> list[dict[str, Any]]:
    """Every completion with its scores."""
    return [
        {"id": prompt.id, "prompt": prompt.text, "completion": written.texts[i], "score": float(scores.total[i])}
        | {part: float(values[i]) for part, values in scores.parts.items()}
        for i, prompt in enumerate(written.prompts)
    ]


def describe_outcome(context: StageContext[Any], name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    was, now = before["score"], after["score"]
    kl = f"KL {after['kl']:.2f} nats a completion, " if "kl" in after else ""
    context.note(
        f"{name}: {now['items']} completions of {now['groups']} groups of prompts: reward {was['mean']:.3f} -> "
        f"{now['mean']:.3f} ({now['low']:.3f} to {now['high']:.3f}), {kl}{after['ended']:.0%} end, "
        f"{after['tokens']:.0f} tokens"
    )
