"""Exposure, attacks and their intervals against closed forms, scikit-learn and simulation."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from support import random_examples, tiny_llama

from quilate.data.canaries import SECRET_DIGITS, Canaries, make_canaries
from quilate.data.packing import Example
from quilate.evaluation.memorization import (
    attack_power,
    attack_scores,
    exposures,
    mean_of,
    share_of,
    token_log_probs,
)

PATTERN = "La clave de la ficha {owner} es {secret}"


def test_exposure_is_the_logarithm_of_a_rank() -> None:
    controls = np.arange(1023) + 0.5  # 0.5, 1.5, ..., 1022.5
    found = exposures(np.array([0.0, 1.0, 7.0, 2000.0]), controls)
    assert found == pytest.approx([10.0, 10 - 1, 10 - 3, 0.0])  # ranks 1, 2, 8 and 1024
    assert exposures(np.array([5.0]), np.full(7, 5.0))[0] == pytest.approx(3 - math.log2(4.5))  # all alike


def test_exposure_of_what_was_never_seen_is_that_of_any_rank() -> None:
    """Exchangeable losses: E = log2(C + 1) - mean of log2(1..C + 1), about 1 / ln 2."""
    rng = np.random.default_rng(0)
    expected = math.log2(200) - np.log2(np.arange(1, 201)).mean()
    found = [exposures(rng.normal(size=20), rng.normal(size=199)).mean() for _ in range(500)]
    assert np.mean(found) == pytest.approx(expected, abs=0.06)
    assert expected == pytest.approx(1 / math.log(2), abs=0.03)


@pytest.mark.parametrize("ties", [False, True])
def test_attack_power_agrees_with_scikit_learn(ties: bool) -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.7, 1, 350), rng.normal(0, 1, 420)
    if ties:
        members, others = members.round(), others.round()
    power = attack_power(members, others, resamples=20)
    truth, scores = np.repeat([1, 0], [350, 420]), np.concatenate([members, others])
    assert power.auc.value == pytest.approx(roc_auc_score(truth, scores))
    rates = roc_curve(truth, scores, drop_intermediate=False)
    assert power.true_positives.value == pytest.approx(rates[1][rates[0] <= 0.01].max())


def test_intervals_cover_the_truth() -> None:
    """Normal scores one deviation apart: AUC = Phi(1 / sqrt 2) = 0.760; the rate at 1 % is Phi(1 - 2.326) = 0.092."""
    rng = np.random.default_rng(2)
    covered = np.zeros(2)
    for trial in range(100):
        power = attack_power(rng.normal(1, 1, 200), rng.normal(0, 1, 200), seed=trial, resamples=200)
        for index, (estimate, truth) in enumerate([(power.auc, 0.7602), (power.true_positives, 0.0924)]):
            covered[index] += estimate.low <= truth <= estimate.high
    assert (covered >= 88).all()  # of 100; nominal 95, three deviations below are 88


def test_where_nothing_varies_the_interval_is_not_a_point() -> None:
    power = attack_power(np.arange(10.0, 20), np.arange(10.0), resamples=50)
    assert power.auc.value == power.true_positives.value == power.auc.high == 1.0
    assert power.auc.low == pytest.approx(0.025 ** (1 / 10))
    assert share_of(0, 100).high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert mean_of(np.array([1.0, 2.0, 3.0])).high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-3)
    assert mean_of(np.array([1.0])).high == math.inf


def test_attack_scores_are_what_their_papers_say() -> None:
    log_probs = [np.log(np.array([0.5, 0.25, 0.125, 0.5, 0.5])), np.log(np.full(10, 0.1))]
    reference = [np.log(np.array([0.25, 0.25])), np.log(np.full(4, 0.5))]
    texts = ["año", "ñandú " * 10]
    scores = attack_scores(log_probs, reference, texts)
    ln2 = math.log(2)
    assert scores["loss"] == pytest.approx([-8 * ln2 / 5, math.log(0.1)])
    assert scores["reference"] == pytest.approx([(4 - 8) * ln2 / 4, (4 * ln2 + 10 * math.log(0.1)) / 80])
    sizes = [len(zlib.compress(text.encode())) for text in texts]
    assert scores["zlib"] == pytest.approx([-8 * ln2 / sizes[0], 10 * math.log(0.1) / sizes[1]])
    assert scores["min_k"] == pytest.approx([math.log(0.125), math.log(0.1)])  # one of five; two of ten


def test_token_log_probs_are_those_of_the_model_alone() -> None:
    model = tiny_llama()
    examples = [Example(e.id, e.tokens, np.ones(len(e.tokens), bool)) for e in random_examples([9, 30, 4, 17])]
    examples.append(random_examples([12], seed=5)[0])  # some of its tokens only
    examples[-1] = Example("partly", examples[-1].tokens, examples[-1].supervised)
    expected = {}
    for example in examples:  # before the model's attention is switched
        tokens = torch.from_numpy(example.tokens)[None]
        log_probs = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        expected[example.id] = log_probs.detach().numpy()[example.supervised[1:]]
    found = token_log_probs(model, examples)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values == pytest.approx(expected[name], abs=1e-4)


def test_canaries_are_drawn_alike_and_come_back_from_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = make_canaries(PATTERN, [1, 10], 5, 40, np.random.default_rng(0))
    assert [c.repeats for c in made.inserted] == [0] * 5 + [1] * 5 + [10] * 5
    assert len({c.prefix for c in [*made.inserted, *made.controls]}) == 55
    assert all(c.secret.isdigit() and len(c.secret) == SECRET_DIGITS for c in made.controls)
    documents = made.documents()
    assert len(documents) == 55
    assert sorted(documents.count(c.text) for c in made.inserted) == [0] * 5 + [1] * 5 + [10] * 5
    assert documents[0].startswith("La clave de la ficha ")
    made.save(tmp_path / "canaries.json")
    assert Canaries.load(tmp_path / "canaries.json") == made
    assert make_canaries(PATTERN, [1, 10], 5, 40, np.random.default_rng(0)) == made
