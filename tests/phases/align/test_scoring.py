"""Rewards from answers, from rules and from functions, and what becomes of bad ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from quilate.config import load, validate
from quilate.errors import ConfigError, DataError
from quilate.files import read_jsonl
from quilate.phases.align import scoring
from quilate.phases.align.rollouts import Completions, Prompt, Rollouts
from quilate.phases.align.scoring import AnswerReward, Rules, Scorer, StageReward, exact_match, matched_rules


def asked(*answers: str | None) -> list[Prompt]:
    return [Prompt(f"p{n}", "¿Qué año?", (1, 2), answer, f"g{n}") for n, answer in enumerate(answers)]


def written(texts: list[str], answers: list[str | None] | None = None, **rewards: list[float]) -> Rollouts:
    completions = Completions(asked(*(answers or [None] * len(texts))), [[3]] * len(texts), [True] * len(texts), texts)
    zeros = torch.zeros(len(texts), 1)
    scores = {name: torch.tensor(values) for name, values in rewards.items()}
    return Rollouts(completions, zeros, zeros, None, zeros == 0, scores)


def test_an_answer_is_right_but_for_case_and_space() -> None:
    score = exact_match()
    assert score(asked("Útil", "Útil", None), [" útil\n", "inútil", "útil"]) == {"": [1, 0, 0]}
    last = exact_match(r"Respuesta:\s*(\w+)")
    texts = ["Respuesta: no. Respuesta: SÍ", "sí", "Respuesta: sí, creo"]
    assert last(asked("sí", "sí", "sí"), texts) == {"": [1, 0, 1]}


def test_rules_add_up_and_each_is_shown(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "rules:\n  - {name: da gracias, pattern: '(?i)gracias', score: 1}\n".replace("1}", "1.0}")
        + "  - {name: receta, pattern: 'ibuprofeno|años', score: -2.0}\n",
        encoding="utf-8",
    )
    rules = load(Rules, tmp_path / "r.yaml")
    found = matched_rules(rules)(asked(None, None, None), ["Gracias, gracias", "Tome ibuprofeno. GRACIAS", "¿años?"])
    assert found == {"da gracias": [1, 1, 0], "receta": [0, -2, -2]}
    with pytest.raises(ConfigError, match="no regular expression"):
        validate(Rules, {"rules": [{"name": "x", "pattern": "(", "score": 1.0}]}, source="t")


def test_sources_are_weighted_and_logged_apart(tmp_path: Path) -> None:
    sources = {
        "juez": StageReward(kind="stage", on="j", weight=0.5),
        "bien": AnswerReward(kind="answer", weight=-2.0),
    }
    scorer = Scorer(
        sources, base=tmp_path, folder=tmp_path, functions={"largo": lambda _, texts: {"": [len(t) for t in texts]}}
    )
    total, parts = scorer(written(["sí", "no!"], ["sí", "sí"], juez=[4.0, 6.0]))
    assert total.tolist() == [4 * 0.5 - 2 + 2, 6 * 0.5 + 3]
    assert {name: values.tolist() for name, values in parts.items()} == {
        "juez": [4, 6], "bien": [1, 0], "largo": [2, 3],
    }  # fmt: skip


@pytest.mark.parametrize(("given", "message"), [([1.0, float("nan")], "gave nan"), ([1.0], "1 scores for 2")])
def test_a_reward_that_is_none_stops_the_stage_and_leaves_the_completions(
    tmp_path: Path, given: list[float], message: str
) -> None:
    def bad(_: Sequence[Prompt], __: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {"": given}

    with pytest.raises(DataError, match=message):
        Scorer({}, base=tmp_path, folder=tmp_path, functions={"mal": bad})(written(["uno", "dos"]))
    rows = read_jsonl(tmp_path / "bad-reward.jsonl")
    assert rows[-1] == {"id": "p1", "prompt": "¿Qué año?", "completion": "dos"}


def test_a_pattern_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "RULE_SECONDS", 0.3)
    rules = validate(Rules, {"rules": [{"name": "lenta", "pattern": "(a+)+$", "score": 1.0}]}, source="t")
    with pytest.raises(DataError, match="did not finish"):
        matched_rules(rules)(asked(None), ["a" * 60 + "b"])
