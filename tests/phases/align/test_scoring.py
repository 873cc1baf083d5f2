"""Rewards from answers, from rules and from functions, and what becomes of bad ones."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quilate.config import load, validate
from quilate.errors import ConfigError, DataError, QuilateError
from quilate.files import read_jsonl
from quilate.inference.scorer import MajorityScorer
from quilate.inference.spans import GazetteerTagger
from quilate.phases.align import patterns
from quilate.phases.align.functions import function_of_file
from quilate.phases.align.rollouts import Completions, Prompt
from quilate.phases.align.scoring import (
    AnswerReward,
    FunctionReward,
    Rules,
    RulesReward,
    Scorer,
    StageReward,
    content_of_rewards,
    exact_match,
    matched_rules,
)
from quilate.phases.baselines import train_tfidf
from quilate.tasks.classification import ClassificationConfig, ClassificationTask
from quilate.tasks.labels import Item


def asked(*answers: str | None) -> list[Prompt]:
    return [Prompt(f"p{n}", "¿Qué año?", "¿Qué año?", (1, 2), answer, f"g{n}") for n, answer in enumerate(answers)]


def written(texts: list[str], answers: list[str | None] | None = None) -> Completions:
    """Completions of two tokens each."""
    return Completions(asked(*(answers or [None] * len(texts))), [[3, 4]] * len(texts), [True] * len(texts), texts)


def scorer_of(folder: Path, function: Callable[..., Any], tokenizer: Any = None, **keys: Any) -> Scorer:
    source = validate(FunctionReward, {"kind": "function", "path": "mías.py:f"} | keys, source="t")
    return Scorer({"mía": source}, base=folder, folder=folder, functions={"mía": function}, tokenizer=tokenizer)


def test_an_answer_is_right_but_for_case_and_space() -> None:
    score = exact_match()
    assert score(written([" útil\n", "inútil", "útil"], ["Útil", "Útil", None])) == {"": [1, 0, 0]}
    last = exact_match(r"Respuesta:\s*(\w+)")
    explained = "Porque la tos dura. Respuesta: 3"  # the right answer may be a whole demonstration
    assert last(written(["No sé. Respuesta: 3", "Respuesta: 2"], [explained, explained])) == {"": [1, 0]}
    texts = ["Respuesta: no. Respuesta: SÍ", "sí", "Respuesta: sí, creo"]
    assert last(written(texts, ["sí", "sí", "sí"])) == {"": [1, 0, 1]}


def test_rules_add_up_and_each_is_shown(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "rules:\n  - {name: da gracias, pattern: '(?i)gracias', score: 1}\n".replace("1}", "1.0}")
        + "  - {name: receta, pattern: 'ibuprofeno|años', score: -2.0}\n",
        encoding="utf-8",
    )
    rules = load(Rules, tmp_path / "r.yaml")
    found = matched_rules(rules, tmp_path)(written(["Gracias, gracias", "Tome ibuprofeno. GRACIAS", "¿años?"]))
    assert found == {"da gracias": [1, 1, 0], "receta": [0, -2, -2]}
    with pytest.raises(ConfigError, match="no regular expression"):
        validate(Rules, {"rules": [{"name": "x", "pattern": "(", "score": 1.0}]}, source="t")
    twice = [{"name": "cortesía", "pattern": pattern, "score": 1.0} for pattern in ("gracias", "por favor")]
    with pytest.raises(ConfigError, match="two rules are called 'cortesía'"):
        validate(Rules, {"rules": twice}, source="t")


def test_sources_are_weighted_and_logged_apart(tmp_path: Path) -> None:
    sources = {
        "juez": StageReward(kind="stage", on="j", weight=0.5),
        "bien": AnswerReward(kind="answer", weight=-2.0),
        "largo": FunctionReward(kind="function", path="l.py:largo", weight=3.0),
    }
    (tmp_path / "l.py").write_text("def largo(prompts, texts):\n    return [len(t) for t in texts]\n", encoding="utf-8")
    scores = Scorer(sources, base=tmp_path, folder=tmp_path)(
        written(["sí", "no!"], ["sí", "sí"]), {"juez": torch.tensor([4.0, 6.0])}
    )
    assert scores.total.tolist() == [4 * 0.5 - 2 + 2 * 3, 6 * 0.5 + 3 * 3]
    assert scores.by_token is None
    assert {name: values.tolist() for name, values in scores.parts.items()} == {
        "juez": [4, 6], "bien": [1, 0], "largo": [2, 3],
    }  # fmt: skip


def test_a_function_may_see_answers_and_tokens_and_score_each(tmp_path: Path, tokenizer: Any) -> None:
    def f(prompts: list[str], texts: list[str], answers: list[str], tokens: list[list[str]]) -> dict[str, Any]:
        assert prompts == ["¿Qué año?"] * 2 and answers == ["uno", "dos"]
        assert tokens == [[tokenizer.decode([3]), tokenizer.decode([4])]] * 2
        return {"cada": [[1.0, 2.0], [0.0, 0.5]], "todo": np.array([1, 0]), "igual": torch.ones(2)}

    scores = scorer_of(tmp_path, f, tokenizer, weight=2.0)(written(["a", "b"], ["uno", "dos"]))
    assert scores.total.tolist() == [10, 3]
    assert scores.by_token is not None and scores.by_token.tolist() == [[2, 4], [0, 1]]
    assert {name: values.tolist() for name, values in scores.parts.items()} == {
        "mía/cada": [3, 0.5], "mía/todo": [1, 0], "mía/igual": [1, 1],
    }  # fmt: skip


def _raises(prompts: list[str], texts: list[str]) -> list[float]:
    raise KeyError("año")


def _times_out(prompts: list[str], texts: list[str]) -> list[float]:
    raise TimeoutError("the judge's server")


def _exits(prompts: list[str], texts: list[str]) -> list[float]:
    raise SystemExit(3)


def _hangs(prompts: list[str], texts: list[str]) -> list[float]:
    while True:
        try:
            time.sleep(5)
        except Exception:
            continue


@pytest.mark.parametrize(
    ("function", "message", "blamed"),
    [
        (lambda _, __: [1.0, float("nan")], "gave nan as a score", ["dos"]),
        (lambda _, __: [1.0], "gave 1 scores for 2 completions", ["uno", "dos"]),
        (lambda _, __: [1.0, [1.0, 2.0, 3.0]], "gave 3 scores for the 2 tokens of a completion", ["dos"]),
        (lambda _, __: ["mucho", 1.0], "gave 'mucho' as a score", ["uno"]),
        (lambda _, __: 3.0, "gave 3.0 instead of a list of scores", ["uno", "dos"]),
        (_raises, "raised KeyError: 'año' (test_scoring.py, line", ["uno", "dos"]),
        (_times_out, "raised TimeoutError: the judge's server", ["uno", "dos"]),
        (_exits, "raised SystemExit: 3", ["uno", "dos"]),
        (lambda _, __: {}, "gave a mapping without any scores", ["uno", "dos"]),
        (lambda _, __: [1.0, 3.5e39], "gave 3.5e+39, which is too large to learn from", ["dos"]),
        (lambda _, __: [1.0, 10**400], "gave 1000000000", ["dos"]),
        (_hangs, "did not finish within 0.2 s for 2 completions", ["uno", "dos"]),
    ],
)
def test_a_function_that_gives_no_scores_stops_the_stage_and_leaves_the_completions(
    tmp_path: Path, function: Callable[..., Any], message: str, blamed: list[str]
) -> None:
    with pytest.raises(DataError, match="^the reward 'mía' " + re.escape(message)):
        scorer_of(tmp_path, function, timeout=0.2)(written(["uno", "dos"]))
    rows = read_jsonl(tmp_path / "bad-reward.jsonl")
    assert [row["completion"] for row in rows] == blamed
    assert rows[-1]["prompt"] == "¿Qué año?"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("x = 1", "m.py:nada", "no function 'nada'"),
        ("1 / 0", "m.py:f", "ZeroDivisionError"),
        (None, "otro.py:f", "no file at"),
    ],
)
def test_a_file_without_the_function(tmp_path: Path, text: str | None, place: str, message: str) -> None:
    if text is not None:
        (tmp_path / "m.py").write_text(text, encoding="utf-8")
    with pytest.raises(QuilateError, match=message):
        function_of_file(place, tmp_path)
    with pytest.raises(ConfigError, match="names no function"):
        validate(FunctionReward, {"kind": "function", "path": "m:f"}, source="t")


def test_what_a_reward_is_made_of_is_part_of_the_stage(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(p, c): ...", encoding="utf-8")
    rewards = {"mía": FunctionReward(kind="function", path="m.py:f"), "bien": AnswerReward(kind="answer")}
    first = content_of_rewards(rewards, tmp_path)
    assert first is not None and set(first) == {"mía"}
    (tmp_path / "m.py").write_text("def f(p, c): pass", encoding="utf-8")
    assert content_of_rewards(rewards, tmp_path) != first


def test_a_pattern_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(patterns, "PATTERN_SECONDS", 0.3)
    rules = validate(Rules, {"rules": [{"name": "lenta", "pattern": "(a+)+$", "score": 1.0}]}, source="t")
    with pytest.raises(DataError, match="did not finish"):
        matched_rules(rules, tmp_path)(written(["a" * 60 + "b"]))


def test_a_rule_may_ask_a_trained_classifier(tmp_path: Path) -> None:
    """A forbidden claim that no pattern finds: TF-IDF has learned it; its digest is part of the stage's identity."""
    texts = ["esto cura el cáncer", "cura la gripe seguro", "consulte a su médico", "pida cita con su médico"]
    items = [Item(str(n), text, label, str(n)) for n, (text, label) in enumerate(zip(texts, "aabb", strict=True))]
    config = validate(ClassificationConfig, {"name": "t", "text": "t", "label": "l"}, source="t")
    trained, _ = train_tfidf(ClassificationTask(config, ["a", "b"], items, [], [], {}), 10.0)
    trained.save(tmp_path / "arm" / "scorer")
    claims = {"name": "promesas", "classifier": "arm", "label": "a", "score": -2.0}
    rules = validate(Rules, {"rules": [claims, claims | {"name": "seguras", "over": 0.999}]}, source="t")
    found = matched_rules(rules, tmp_path)(written(["cura el cáncer seguro", "vea a su médico", "xyz"]))
    assert found["promesas"][:2] == [-2.0, 0.0] and found["seguras"] == [0.0, 0.0, 0.0]
    (tmp_path / "r.yaml").write_text(json.dumps({"rules": [claims]}), encoding="utf-8")
    rewards = {"r": RulesReward(kind="rules", path="r.yaml")}
    first = content_of_rewards(rewards, tmp_path)
    MajorityScorer(["a", "b"], [0.5, 0.5]).save(tmp_path / "arm" / "scorer")
    assert content_of_rewards(rewards, tmp_path) != first
    wrong = validate(Rules, {"rules": [claims | {"label": "c"}]}, source="t")
    with pytest.raises(ConfigError, match="arm has no label 'c'"):
        matched_rules(wrong, tmp_path)
    GazetteerTagger(["a"], {("x",): "a"}).save(tmp_path / "arm" / "scorer")
    with pytest.raises(DataError, match="does not give texts one label each"):
        matched_rules(rules, tmp_path)
    for bad in ({"pattern": "x"}, {"label": None}, {"classifier": None}):
        with pytest.raises(ConfigError, match="rule 'promesas'"):
            validate(Rules, {"rules": [claims | bad]}, source="t")
