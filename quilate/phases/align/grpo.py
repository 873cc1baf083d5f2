"""Policies that compare a prompt's completions with one another and need no value model: GRPO (Shao et al. 2024) and
RLOO (Ahmadian et al. 2024)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from quilate.objectives.policy_gradient import grpo_advantages, rloo_advantages, token_kl
from quilate.phases.align.online import Method, OnlineTraining, default_rate, learn, start
from quilate.phases.align.rollouts import Rollouts
from quilate.phases.align.scoring import Scores
from quilate.phases.stage import StageContext, StageKind, StageReport

DEFAULT_RATE = {"full": 1e-6, "lora": 1e-5}  # TRL's default for both; LoRA's ten times that


class GrpoConfig(OnlineTraining):
    kind: Literal["grpo"]
    """A policy learns from rewards, each completion against the others of its prompt."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 1e-6 for `full`, 1e-5 for `lora`."""
    advantage: Literal["grpo", "rloo"] = "grpo"
    """`grpo`: the reward less the group's mean, in deviations, with the KL in the loss; `rloo`: less the mean of the
    others, with the KL in the reward."""
    scale: bool = True
    """For `advantage: grpo`: divide by the group's deviation (Liu et al. 2025 advise against it)."""
    prompts_per_iteration: int = Field(default=8, ge=1)
    """Prompts per iteration, that is between two states of the policy that writes."""
    completions_per_prompt: int = Field(default=8, ge=2)
    """Completions of each prompt."""

    @model_validator(mode="after")
    def _scale_goes_with_grpo(self) -> GrpoConfig:
        if not self.scale and self.advantage != "grpo":
            raise ValueError("`scale` goes with `advantage: grpo`")
        return self


def grpo(config: GrpoConfig) -> Method:
    """What GRPO and RLOO add to the common part. The loss is a mean over all tokens of a step (Yu et al. 2025, "DAPO"):
    over each completion's own first, as GRPO had it, long wrong answers would cost less a token than short ones."""

    def advantages(rollouts: Rollouts, scores: Scores, beta: float) -> tuple[Tensor, Tensor]:
        total = scores.total
        if config.advantage == "rloo":
            kl = token_kl(rollouts.log_probs, rollouts.reference, "k1")
            total = total - beta * torch.where(rollouts.mask, kl, 0.0).sum(1)
        groups = total.view(-1, config.completions_per_prompt)
        each = rloo_advantages(groups) if config.advantage == "rloo" else grpo_advantages(groups, scale=config.scale)
        return torch.where(rollouts.mask, each.reshape(-1, 1), 0.0), torch.empty(0)

    def next_beta(_: list[dict[str, Any]]) -> float:
        return config.beta

    kl_in_loss = config.beta if config.advantage == "grpo" else 0.0
    return Method(default_rate(config, DEFAULT_RATE), advantages, next_beta, kl_in_loss)


def _run(context: StageContext[GrpoConfig]) -> StageReport:
    return learn(start(context, value=False), grpo(context.config))


GRPO = StageKind("grpo", 3, GrpoConfig, _run)
