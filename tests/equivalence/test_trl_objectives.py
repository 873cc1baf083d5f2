"""The preference objectives and GRPO's against TRL's own trainers, on the same tensors: values and gradients.

TRL's loss code is methods of its trainers. Each is called here on a stand-in that carries the settings alone, with a
model that returns log-probabilities given beforehand; so what is compared is TRL's code as installed, not a copy of it.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from quilate.objectives.policy_gradient import masked_mean, ppo_policy_loss, token_kl
from quilate.objectives.preference import dpo, ipo, kto, kto_reference_point, orpo

pytest.importorskip("trl", reason="compares with TRL, which is not installed (pip install 'quilate[bench]')")

PAIRS, LENGTH, PROMPT = 5, 9, 3  # a row is PROMPT tokens and then its completion; the first token predicts nothing


def trainer(**settings: Any) -> MagicMock:
    """What a trainer's `_compute_loss` reads of its trainer."""
    stand_in = MagicMock()
    stand_in.accelerator.gather_for_metrics = stand_in.accelerator.gather = lambda value: value
    stand_in.accelerator.device = torch.device("cpu")
    stand_in.accelerator.num_processes = 1
    stand_in._metrics = {"train": defaultdict(list)}
    stand_in.aux_loss_enabled = stand_in.use_weighting = False
    stand_in._total_train_tokens, stand_in._tp_size = 0, 1
    stand_in.model.training = True
    for name, value in settings.items():
        setattr(stand_in, name, value)
    return stand_in


def completion_mask(rows: int) -> torch.Tensor:
    """[rows, LENGTH] completions of different lengths after the same prompt."""
    ends = torch.tensor([LENGTH - row % 4 for row in range(rows)])
    places = torch.arange(LENGTH)
    return ((places >= PROMPT) & (places < ends[:, None])).long()


def log_probs(rows: int, seed: int, *, gradient: bool = False) -> torch.Tensor:
    """[rows, LENGTH - 1] of the completions' tokens, 0 elsewhere; of a plausible size."""
    drawn = -torch.rand(rows, LENGTH - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn * completion_mask(rows)[:, 1:]).requires_grad_(gradient)


def model_of(given: torch.Tensor) -> Any:
    nothing = torch.zeros_like(given)
    said = SimpleNamespace(
        log_probs=given, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), log_sum_sq_probs=nothing
    )
    return lambda **_: said


def batch_of(rows: int) -> dict[str, torch.Tensor]:
    ids = torch.ones(rows, LENGTH, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": ids, "completion_mask": completion_mask(rows)}


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_and_ipo(loss_type: str) -> None:
    from trl import DPOTrainer

    ours, theirs = (log_probs(2 * PAIRS, 1, gradient=True) for _ in range(2))
    reference = log_probs(2 * PAIRS, 2).sum(1)
    given = batch_of(2 * PAIRS) | {"ref_chosen_logps": reference[:PAIRS], "ref_rejected_logps": reference[PAIRS:]}
    settings = trainer(
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=0.3, loss_types=[loss_type],
        loss_weights=[1.0], label_smoothing=0.0,
    )  # fmt: skip
    expected = DPOTrainer._compute_loss(settings, model_of(theirs), given, return_outputs=False)
    ratios = ours.sum(1) - reference
    if loss_type == "ipo":
        ratios = ratios / completion_mask(2 * PAIRS).sum(1)
    loss = (dpo if loss_type == "sigmoid" else ipo)(ratios[:PAIRS], ratios[PAIRS:], beta=0.3).mean()
    assert_same(loss, ours, expected, theirs)


def test_kto() -> None:
    from trl import KTOTrainer

    rows = 6
    desirable = torch.tensor([True, False, True, True, False, False])
    ours, theirs = (log_probs(rows, 3, gradient=True) for _ in range(2))
    reference, elsewhere, reference_elsewhere = (log_probs(rows, seed).sum(1) for seed in (4, 5, 6))
    given = batch_of(rows) | {"label": desirable, "ref_logps": reference, "ref_KL_logps": reference_elsewhere}
    settings = trainer(
        precompute_ref_logps=True, calculate_KL=True, loss_type="kto", beta=0.2, desirable_weight=1.3,
        undesirable_weight=0.7, _compute_kl_logps=lambda *_: elsewhere,
    )  # fmt: skip
    expected = KTOTrainer._compute_loss(settings, model_of(theirs), given, return_outputs=False)
    point = kto_reference_point(elsewhere - reference_elsewhere)
    assert point > 0, "a reference point of 0 would compare less"
    losses = kto(ours.sum(1) - reference, desirable, point, beta=0.2, desirable_weight=1.3, undesirable_weight=0.7)
    assert_same(losses.mean(), ours, expected, theirs)


def test_orpos_odds() -> None:
    """The odds alone: the likelihood beside them is the completion's here, and the prompt's too in TRL."""
    from trl.experimental.orpo import ORPOTrainer

    better, worse = (log_probs(PAIRS, seed).sum(1) / LENGTH for seed in (7, 8))
    ours, theirs = better.clone().requires_grad_(), better.clone().requires_grad_()
    minus, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.4), theirs, worse)
    loss = (orpo(ours, worse, weight=0.4) + ours).mean()
    assert_same(loss, ours, -minus.mean(), theirs, rtol=1e-5)  # TRL computes in fp32


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo(beta: float) -> None:
    """TRL's `bnpo`: a mean over the batch's tokens, as ours is over a step's."""
    from trl import GRPOTrainer

    rows, mask = 6, completion_mask(6)[:, PROMPT:]
    width = mask.shape[1]
    ours, theirs = (log_probs(rows, 9)[:, -width:].clone().requires_grad_() for _ in range(2))
    old, reference = log_probs(rows, 10)[:, -width:], log_probs(rows, 11)[:, -width:]
    advantages = torch.tensor([1.2, -0.4, 0.0, 0.7, -1.5, 0.3], dtype=torch.float64)
    ids = torch.ones(rows, width, dtype=torch.int64)
    given = {
        "prompt_ids": ids[:, :PROMPT], "prompt_mask": ids[:, :PROMPT], "completion_ids": ids, "completion_mask": mask,
        "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference,
    }  # fmt: skip
    settings = trainer(
        loss_type="bnpo", beta=beta, epsilon_low=0.2, epsilon_high=0.28, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, importance_sampling_level="token", use_vllm=False,
        _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        _get_per_token_logps_and_entropies=lambda *_, **__: (theirs, torch.zeros_like(theirs), None),
    )  # fmt: skip
    settings.args.delta, settings.args.use_bias_correction_kl = None, False
    expected = GRPOTrainer._compute_loss(settings, None, given)
    where = mask.bool()
    clipped = ppo_policy_loss(ours, old, advantages[:, None].expand_as(old), where, clip_low=0.2, clip_high=0.28)
    assert 0 < clipped.clipped.sum() < where.sum(), "some ratios are clipped and some are not"
    loss = masked_mean(clipped.losses + beta * token_kl(ours, reference, "k3"), where)
    assert_same(loss, ours, expected, theirs)


def assert_same(
    loss: torch.Tensor, ours: torch.Tensor, expected: torch.Tensor, theirs: torch.Tensor, rtol: float = 1e-10
) -> None:
    torch.testing.assert_close(loss.double(), expected.double(), rtol=rtol, atol=0)
    loss.backward()
    expected.backward()
    assert ours.grad is not None and ours.grad.abs().max() > 0
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=rtol, atol=1e-12)
