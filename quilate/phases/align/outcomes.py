"""What a policy's completions earn, with intervals, and what it wrote: measured before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def outcome_rows(set_name: str, written: Completions, scores: Scores) -> list[dict[str, Any]]:
    """Every completion with its scores."""
    return [
        {"set": set_name, "id": prompt.id, "group": prompt.group, "prompt": prompt.text, "completion": written.texts[i],
         "score": float(scores.total[i]), "rewards": {part: float(of[i]) for part, of in scores.parts.items()}}
        for i, prompt in enumerate(written.prompts)
    ]  # fmt: skip


def changes(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], rules: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """By set: how the total and every reward changed, completion by completion of the same prompts, with intervals over
    groups of prompts; JSON-able.

    Args:
        before, after: as `outcome_rows` made them, in one order.
        rules: the rewards that are rules, and what each adds where it is found: they are told as the share of
            completions in which they are, before, after, and its change.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["set"] for row in after):
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if b["set"] == name]
        groups = [b["group"] for _, b in pairs]
        parts = list(pairs[0][1]["rewards"])
        was, now = (
            {part: np.array([row["rewards"][part] for row in side]) for part in parts}
            for side in zip(*pairs, strict=True)
        )
        total = np.array([b["score"] - a["score"] for a, b in pairs])
        found[name] = {
            "change": mean_report(total, groups),
            "reward_changes": {part: mean_report(now[part] - was[part], groups) for part in parts},
        }
        found[name]["rules"] = {
            rule: {
                "before": mean_report(was[rule] / score, groups),
                "after": mean_report(now[rule] / score, groups),
                "change": mean_report((now[rule] - was[rule]) / score, groups),
            }
            for rule, score in rules.items()
            if rule in parts and score
        }
    return found


def describe_rules(context: StageContext[Any], name: str, rules: Mapping[str, Any]) -> None:
    for rule, found in rules.items():
        was, now, change = (found[when] for when in ("before", "after", "change"))
        context.note(
            f"{name}: rule {rule} is found in {was['mean']:.1%} of completions before and {now['mean']:.1%} after: "
            f"{100 * change['mean']:+.1f} points ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"
        )


def describe_outcome(context: StageContext[Any], name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    was, now = before["score"], after["score"]
    kl = f"KL {after['kl']:.2f} nats a completion, " if "kl" in after else ""
    context.note(
        f"{name}: {now['items']} completions of {now['groups']} groups of prompts: reward {was['mean']:.3f} -> "
        f"{now['mean']:.3f} ({now['low']:.3f} to {now['high']:.3f}), {kl}{after['ended']:.0%} end, "
        f"{after['tokens']:.0f} tokens"
    )
