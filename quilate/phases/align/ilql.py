"""ILQL as a stage: a language model with values of its tokens, from a reward-labelled data set (Snell et al. 2022).

Shapes: S completion tokens of a micro-batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from quilate.data.packing import PackedBatch
from quilate.engine.loop import Followers
from quilate.files import atomic_folder
from quilate.models.encoder import DocumentEncoder
from quilate.models.token_values import GuidedHead, TokenValues
from quilate.objectives.ilql import ilql_losses, standardized_returns
from quilate.phases.align.cloning import documents_of, offline_report
from quilate.phases.align.offline import Offline, OfflineTraining, start_offline
from quilate.phases.example_training import plan_batches, train
from quilate.phases.sft import save_chat_model
from quilate.phases.stage import StageContext, StageKind, StageReport, once

VALUES = "values"  # the folder of what tokens are worth, beside `model`
DEFAULT_RATE = {"full": 5e-5, "lora": 5e-4}  # trlX's default (ilql_config.yml); LoRA's ten times that


class IlqlConfig(OfflineTraining):
    kind: Literal["ilql"]
    """A model learns from reward-labelled completions what each of its tokens is worth, and writes by it."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 5e-5 for `full`, 5e-4 for `lora`."""
    betas: list[float] = Field(default=[0.0, 1.0], min_length=1)
    """How much the values count in writing, each measured: 0 is the language model alone."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount of later rewards, a token."""
    tau: float = Field(default=0.7, gt=0, lt=1)
    """Expectile of the value: 0.5 is the mean over what the data does next, near 1 its best."""
    cql: float = Field(default=0.1, ge=0)
    """Weight of the loss that holds down the values of tokens that the data never took."""
    awac: float = Field(default=1.0, ge=0)
    """Weight of the language model's own loss."""
    awac_temperature: float = Field(default=0.0, ge=0)
    """Weigh that loss by exp(this times the advantage); 0 is plain cloning."""
    polyak: float = Field(default=0.1, gt=0, le=1)
    """How far the target values move towards the values each time."""
    polyak_steps: int = Field(default=5, ge=1)
    """Optimizer steps between two such moves."""

    @field_validator("betas")
    @classmethod
    def _distinct(cls, betas: list[float]) -> list[float]:
        if len(set(betas)) < len(betas) or min(betas) < 0:
            raise ValueError("betas must be distinct and not negative")
        return betas


class IlqlLoss:
    """Callable `(batch) -> sum of losses` over completion tokens; a batch's ids name the returns.

    `measured` gives what was seen since it was last asked.
    """

    def __init__(
        self, model: PreTrainedModel, values: TokenValues, returns: Mapping[str, float], config: IlqlConfig
    ) -> None:
        self.encoder, self.values, self.returns, self.config = DocumentEncoder(model), values, returns, config
        self._sums: defaultdict[str, float] = defaultdict(float)

    def __call__(self, batch: PackedBatch) -> Tensor:
        batch = batch.to(self.encoder.device)
        config, divided = self.config, self.encoder.divided
        hidden = self.encoder(batch.input_ids, batch.position_ids, batch.lengths)
        predicting = divided.transform(hidden[batch.source_positions])
        states = predicting.float()
        documents = documents_of(batch)
        last = F.pad(documents[1:] != documents[:-1], (0, 1), value=True)
        values = self.values.values(states)
        # A completion's tokens stand side by side: the state after one is the state before the next.
        following = torch.where(last, 0.0, values.detach().roll(-1))
        returns = torch.tensor([self.returns[id] for id in batch.ids], device=values.device)
        losses = ilql_losses(
            F.linear(predicting, divided.head.weight, divided.head.bias), self.values.qs(states),
            self.values.target_qs(states.detach()), values, following, batch.targets,
            torch.where(last, returns[documents], 0.0),
            gamma=config.gamma, tau=config.tau, awac_temperature=config.awac_temperature,
        )  # fmt: skip
        for name, loss in losses._asdict().items():
            self._sums[name] += float(loss.detach())
        self._sums["tokens"] += batch.supervised_tokens
        return losses.q + losses.value + config.cql * losses.cql + config.awac * losses.awac

    def measured(self) -> dict[str, float]:
        """Each loss as a mean over the step's tokens."""
        sums, self._sums = self._sums, defaultdict(float)
        tokens = sums.pop("tokens", 0.0)
        return {f"{name}_loss": value / tokens for name, value in sums.items()}

    def followers(self) -> Followers:
        """The target values, which move when it is due."""
        return Followers(self.values.targets(), self._follow)

    def _follow(self, steps: int) -> None:
        if steps % self.config.polyak_steps == 0:
            self.values.follow(self.config.polyak)


def _run(context: StageContext[IlqlConfig]) -> StageReport:
    return learn_values(start_offline(context))


def learn_values(offline: Offline) -> StageReport:
    """Measure, train, measure with each beta, save the language model and, beside it, the values.

    Raises:
        Interrupted, CheckpointError, QuilateError: as `fit`.
    """
    context = offline.context
    config: IlqlConfig = context.config
    before = once(context.folder / "before.json", lambda: offline.measure("before"))
    earned = standardized_returns(torch.tensor([sample.reward for sample in offline.samples]))
    returns = {s.example.id: float(z) for s, z in zip(offline.samples, earned, strict=True)}
    head = DocumentEncoder(offline.model).divided.head
    values = TokenValues(head.weight.shape[1], head.weight.shape[0]).to(head.weight.device)
    loss = IlqlLoss(offline.model, values, returns, config)
    batches = plan_batches(config, [s.example for s in offline.samples], context.seed)
    rate = config.lr or DEFAULT_RATE[config.method]
    together = nn.ModuleDict({"policy": offline.model, "token_values": values})
    fitted = train(
        context, together, batches, loss, offline.streams, rate=rate, measured=loss.measured, followers=loss.followers()
    )  # fmt: skip
    offline.counts["visits over the token budget"] = batches.examples_left_out
    after, first = _measured(offline, config.betas, head, values, before)
    save_chat_model(context.folder, offline.model, offline.template)
    with atomic_folder(context.folder / VALUES) as place:
        values.save(place)
    return offline_report(offline, fitted, first, after, value_parameters=sum(p.numel() for p in values.parameters()))


def _measured(
    offline: Offline, betas: Sequence[float], head: nn.Linear, values: TokenValues, before: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """By set and beta, and beside each what was measured before; the loss depends on no beta."""
    if offline.measure_name != "reward":
        return offline.measure("after"), before
    after, first = dict[str, Any](), dict[str, Any]()
    for beta in betas:
        found = offline.measure(f"after-beta-{beta:g}", GuidedHead(head, values, beta))
        after |= {f"{name}, beta {beta:g}": report for name, report in found.items()}
        first |= {f"{name}, beta {beta:g}": before[name] for name in found}
    return after, first


ILQL = StageKind("ilql", 1, IlqlConfig, _run)
