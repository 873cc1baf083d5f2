"""SQuAD's scores: by its own script's text, by hand in Spanish, and judged with intervals."""

from __future__ import annotations

import re
import string
from collections import Counter

import numpy as np
import pytest

from quilate.errors import QuilateError
from quilate.evaluation.answers import score_answer
from quilate.evaluation.judgement import judge
from quilate.evaluation.outcomes import ArmOutcome, Cost, Rules


def squad_normalize(s: str) -> str:
    """`normalize_answer` of evaluate-v1.1.py, step by step as it is there."""
    lower = s.lower()
    unpunctuated = "".join(ch for ch in lower if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", unpunctuated).split())


def squad_f1(prediction: str, truth: str) -> float:
    """`f1_score` of evaluate-v1.1.py."""
    said, wanted = squad_normalize(prediction).split(), squad_normalize(truth).split()
    same = sum((Counter(said) & Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(said), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_english_answers_are_scored_as_squads_script_does() -> None:
    words = ["the", "Eiffel", "tower,", "a", "1889", "Paris!", "in", "an"]
    rng = np.random.default_rng(0)
    for _ in range(200):
        said, *right = (" ".join(rng.choice(words, size=rng.integers(1, 5))) for _ in range(3))
        if not squad_normalize(said) or not all(map(squad_normalize, right)):
            continue
        exact, f1 = score_answer(said, right, "en")
        assert exact == max(float(squad_normalize(said) == squad_normalize(r)) for r in right)
        assert f1 == pytest.approx(max(squad_f1(said, r) for r in right))


def test_spanish_by_hand() -> None:
    assert score_answer("¡La Catedral de León!", ["catedral de león"], "es") == (1.0, 1.0)
    assert score_answer("una catedral", ["la catedral de León", "iglesia"], "es") == (0.0, pytest.approx(2 / 4))
    assert score_answer("", ["algo"], "es") == (0.0, 0.0)
    assert score_answer("el", ["la"], "es") == (1.0, 1.0)  # nothing but articles


def outcome(name: str, seconds: float, scores: np.ndarray) -> ArmOutcome:
    return ArmOutcome(name, "fine-tuning", "lora", [1], [], Cost(seconds), 1.0, scored=[scores])


@pytest.mark.parametrize("metric", ["exact_match", "token_f1"])
def test_answers_are_judged_like_everything_else(metric: str) -> None:
    rng = np.random.default_rng(1)
    f1 = rng.random(300)
    good = np.stack([(f1 > 0.4).astype(float), np.where(f1 > 0.4, 1.0, f1)], axis=1)
    bad = np.zeros_like(good)
    rules = Rules(metric=metric, resamples=1000)  # type: ignore[arg-type]
    found = judge([outcome("afinado", 5, good), outcome("base", 1, bad)], None, [], None, rules)
    assert found.recommendation.arm == "afinado"
    arm = found.arms[0]
    assert arm.score == pytest.approx(good[:, ["exact_match", "token_f1"].index(metric)].mean())
    assert set(arm.scores) == {"exact_match", "token_f1"}
    assert {c.test.split()[0] for c in found.comparisons} == {"McNemar" if metric == "exact_match" else "bootstrap"}
    with pytest.raises(QuilateError, match="not between 0 and 1"):
        judge([outcome("x", 1, good + 1)], None, [], None, rules)
    with pytest.raises(QuilateError, match="scores have shape"):
        judge([outcome("x", 1, good), outcome("y", 1, good[:-1])], None, [], None, rules)
