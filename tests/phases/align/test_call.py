"""`quilate.align`: each method by one call, and what becomes of bad arguments and bad rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import quilate
from quilate.errors import ConfigError, DataError
from quilate.files import read_json, read_jsonl

PROMPTS = [f"{vowel}{consonant}" for vowel in "aeiou" for consonant in "lmn"]
SMALL: dict[str, Any] = {"format": "text", "precision": "fp32", "max_new_tokens": 3, "note": lambda _: None}
ONLINE = SMALL | {"prompts": PROMPTS, "epochs": 1.0, "held_out": 0.2, "missing_end": None}


def brief(prompts: list[str], texts: list[str]) -> list[float]:
    return [-float(len(text)) for text in texts]


@pytest.mark.parametrize("method", ["ppo", "rloo", None])
def test_online_by_one_call(tmp_path: Path, llama_directory: Path, method: Any) -> None:
    (tmp_path / "r.yaml").write_text("rules:\n  - {name: tilde, pattern: '[áéíóú]', score: 1.0}\n", encoding="utf-8")
    rewards = {
        "breve": {"function": brief, "weight": 2.0}, "tilde": {"kind": "rules", "path": str(tmp_path / "r.yaml")},
    }  # fmt: skip
    sizes = {"prompts_per_iteration": 6, "completions_per_prompt": 2}
    made = quilate.align(llama_directory, reward=rewards, method=method, out=tmp_path / "run", **ONLINE, **sizes)
    assert (made.model / "adapter_model.safetensors").exists()
    rows = read_jsonl(made.folder / "policy" / "rollouts.jsonl")
    assert set(rows[0]["rewards"]) == {"breve", "tilde/tilde"}
    assert [row["completions"] for row in rows] == [12, 12]  # 12 prompts are left to train on
    config = read_json(made.folder / "policy" / "config.json")
    assert config["rewards"]["breve"] == {
        "kind": "function", "path": "test_call.py:brief", "timeout": 60.0, "weight": 2.0,
    }  # fmt: skip
    assert config["kind"] == ("ppo" if method == "ppo" else "grpo") and set(made.after) == {"asked"}
    if method == "ppo":
        with pytest.raises(DataError, match="holds a finished run"):
            quilate.align(llama_directory, reward=rewards, method=method, out=tmp_path / "run", **ONLINE, **sizes)


def test_answers_reach_the_function(tmp_path: Path, llama_directory: Path) -> None:
    seen: list[str] = []

    def right(prompts: list[str], texts: list[str], answers: list[str]) -> list[float]:
        seen.extend(answers)
        return [float(text == answer) for text, answer in zip(texts, answers, strict=True)]

    answers = [prompt.upper() for prompt in PROMPTS]
    quilate.align(llama_directory, reward=right, answers=answers, out=tmp_path / "run", **ONLINE)
    assert set(seen) == set(answers)


@pytest.mark.parametrize("method", [None, "cloning"])
def test_offline_by_one_call(tmp_path: Path, llama_directory: Path, method: Any) -> None:
    samples = [(prompt, "sí") for prompt in PROMPTS]
    made = quilate.align(
        llama_directory, samples=samples, rewards=list(range(len(samples))), reward=brief, method=method,
        out=tmp_path / "run", **SMALL,
    )  # fmt: skip
    assert made.report.facts["best_reward"] >= len(samples) - 3
    assert (made.folder / "policy" / "values").exists() == (method is None)
    assert all(score <= 0 for score in made.after.values()) and made.after


def test_a_bad_reward_leaves_its_samples_and_the_call_can_be_made_again(tmp_path: Path, llama_directory: Path) -> None:
    broken = True

    def sometimes(prompts: list[str], texts: list[str]) -> list[float]:
        return [float("nan") if broken else 1.0 for _ in texts]

    with pytest.raises(DataError, match="the reward 'reward' gave nan"):
        quilate.align(llama_directory, reward=sometimes, out=tmp_path / "run", **ONLINE)
    assert read_jsonl(tmp_path / "run" / "policy" / "bad-reward.jsonl")[0]["prompt"] in PROMPTS
    with pytest.raises(DataError, match="other arguments"):
        quilate.align(llama_directory, reward=sometimes, seed=1, out=tmp_path / "run", **ONLINE)
    broken = False
    assert quilate.align(llama_directory, reward=sometimes, out=tmp_path / "run", **ONLINE).after == {"asked": 1.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "reinforce", "prompts": PROMPTS}, "no method"),
        ({"prompts": PROMPTS}, "needs a `reward`"),
        ({"reward": brief}, "learns from what it writes"),
        ({"reward": brief, "prompts": PROMPTS, "answers": ["uno"]}, "1 answers for 15 prompts"),
        ({"samples": [("a", "b")]}, "learns from a data set"),
        ({"samples": [("a", "b")], "rewards": []}, "0 rewards for 1 samples"),
        ({"samples": ["ab"], "rewards": [1.0]}, "no pair"),
        ({"reward": brief, "prompts": PROMPTS, "learning_rate": 1.0}, "learning_rate"),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quilate.align("nowhere", out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
