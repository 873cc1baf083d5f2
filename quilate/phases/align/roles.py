"""The models that learning from rewards needs: policy, reference, value and reward models, on one base with LoRA.

With `method: lora` the base is in memory once. The policy is an adapter on it, the reference is the base with every
adapter off, the value model and each reward model are further adapters and one linear map each. Adapters take turns:
the policy's is on, another only while its role computes.

Shapes: T tokens in a packed row, S completion tokens among them, N documents, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from quilate.data.packing import PackedBatch
from quilate.files import read_json
from quilate.models.encoder import DocumentEncoder
from quilate.models.load import load_causal
from quilate.models.reward import BIAS_KEY, RewardModel, load_reward_model
from quilate.models.source import fingerprint
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.objectives.cross_entropy import linear_token_log_probs

POLICY, VALUE = "default", "value"  # names of adapters; peft saves the one called "default" as a plain adapter


class Adapters:
    """The adapters of one peft model. The policy's is on; `using` puts on another for a while, or none.

    peft freezes what it switches off; here what is trained stays trainable, for a backward pass may come later.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def add_trained(self, name: str, config: Any) -> None:
        """A fresh adapter that changes nothing yet, trained beside the policy's."""
        self.model.add_adapter(name, config, autocast_adapter_dtype=False)
        self._trained += [p for full_name, p in self.model.named_parameters() if f".{name}." in full_name]
        self._switch(POLICY)

    def load(self, name: str, folder: Path) -> None:
        """An adapter from its directory, frozen."""
        self.model.load_adapter(str(folder), adapter_name=name, is_trainable=False, autocast_adapter_dtype=False)
        self._switch(POLICY)

    def copy(self, source: str, target: str) -> None:
        """Give one adapter the weights of another of the same shape."""
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            if f".{target}." in name:
                parameter.data.copy_(parameters[name.replace(f".{target}.", f".{source}.")].data)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self._switch(name)
        try:
            yield
        finally:
            if name is None:
                self.model.base_model.enable_adapter_layers()
            self._switch(POLICY)

    def keep_policy_only(self) -> None:
        """Forget every other adapter, before the model is saved."""
        for name in [name for name in self.model.peft_config if name != POLICY]:
            self.model.delete_adapter(name)
        self._switch(POLICY)

    def _switch(self, name: str) -> None:
        self.model.set_adapter(name)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self._trained:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Role:
    """A model's part: its encoder, and what must be on while it computes."""

    encoder: DocumentEncoder
    on: Callable[[], AbstractContextManager[None]] = nullcontext

    def hidden(self, packed: PackedBatch) -> Tensor:
        """[T, D]"""
        with self.on():
            return self.encoder(packed.input_ids, packed.position_ids, packed.lengths, packed.places)

    def log_probs(self, packed: PackedBatch, temperature: float) -> Tensor:
        """[S] log-probabilities of the completions' tokens at `temperature`, that of sampling: logits are divided by
        it before the softmax (Huang et al. 2024)."""
        packed = packed.to(self.encoder.device)
        divided = self.encoder.divided
        predicting = divided.transform(self.hidden(packed)[packed.source_positions])
        weight: Tensor = divided.head.weight
        bias: Tensor | None = divided.head.bias
        if temperature != 1:
            predicting, bias = predicting / temperature, None if bias is None else bias / temperature
        return linear_token_log_probs(predicting, weight, bias, packed.targets)


@dataclass(frozen=True)
class ValueRole:
    """What is still to be earned before each token of a completion."""

    role: Role
    head: nn.Linear

    def __call__(self, packed: PackedBatch) -> Tensor:
        """[S] values of the states from which the completions' tokens were chosen, fp32."""
        packed = packed.to(self.role.encoder.device)
        hidden = self.role.hidden(packed)[packed.source_positions]
        return F.linear(hidden.float(), self.head.weight, self.head.bias)[:, 0]


@dataclass(frozen=True)
class RewardRole:
    """A trained reward model's score of each document, read at its last token."""

    role: Role
    score: Tensor
    bias: float

    @torch.no_grad()
    def __call__(self, packed: PackedBatch) -> Tensor:
        """[N], fp32."""
        packed = packed.to(self.role.encoder.device)
        hidden = self.role.hidden(packed)
        ends = torch.tensor(packed.lengths, device=hidden.device).cumsum(0) - 1
        ends = ends if packed.places is None else packed.places[ends]
        return F.linear(hidden[ends].float(), self.score.float())[:, 0] + self.bias


@dataclass
class Roles:
    """Attributes:
    model: the policy's, to write with and to save.
    trained: what the optimizer sees, the value model included.
    shared: names of reward models that stand on the policy's base; the others are in memory beside it.
    """

    model: PreTrainedModel
    trained: nn.Module
    policy: Role
    reference: Role
    value: ValueRole | None
    rewards: dict[str, RewardRole]
    shared: tuple[str, ...]
    adapters: Adapters | None

    def finished_model(self) -> PreTrainedModel:
        """The policy alone."""
        if self.adapters is not None:
            self.adapters.keep_policy_only()
        return self.model


def make_roles(
    model: PreTrainedModel,
    base: Path,
    *,
    lora: LoraConfig | None,
    rewards: Mapping[str, Path],
    weights: Mapping[str, float],
    value: bool,
) -> Roles:
    """Everything that takes part, from a causal model and the folders of finished reward stages.

    The value model starts as the first reward model that it can be made from, its score times that reward's weight:
    with an adapter the first that stands on the same base, else the first of all. Without one it starts with values
    of 0.

    Args:
        model: plain (an adapter was merged); with `lora` None every weight of it is trained, and the reference and the
            value model are copies.
        base: the directory that `model` is of.
    """
    if lora is None:
        return _in_full(model, base, rewards, weights, value)
    adapted = add_lora(model, lora, base=base)
    adapters = Adapters(adapted)
    encoder = DocumentEncoder(adapted)
    judges, shared = dict[str, RewardRole](), dict[str, str]()
    for number, (name, folder) in enumerate(rewards.items()):
        if _stands_on(folder, base):
            adapter = f"reward{number}"
            adapters.load(adapter, folder / "adapter")
            shared[name] = adapter
            on = Role(encoder, _use(adapters, adapter))
            judges[name] = RewardRole(on, *_score_of(folder, encoder.device))
        else:
            judges[name] = _reward_beside(folder, model.dtype)
    trained = nn.ModuleDict({"policy": adapted})
    critic = None
    if value:
        first = next(iter(shared), None)
        config = adapted.peft_config[POLICY if first is None else shared[first]]
        adapters.add_trained(VALUE, config)
        head = _value_head(encoder, None if first is None else (judges[first], weights[first]))
        if first is not None:
            adapters.copy(shared[first], VALUE)
        critic = ValueRole(Role(encoder, _use(adapters, VALUE)), head)
        trained["value_head"] = head
    reference = Role(encoder, _use(adapters, None))
    return Roles(adapted, trained, Role(encoder), reference, critic, judges, tuple(shared), adapters)


def _in_full(
    model: PreTrainedModel, base: Path, rewards: Mapping[str, Path], weights: Mapping[str, float], value: bool
) -> Roles:
    judges = {name: _reward_beside(folder, model.dtype) for name, folder in rewards.items()}
    reference = load_causal(base, dtype=model.dtype).requires_grad_(False)
    trained = nn.ModuleDict({"policy": model})
    critic = None
    if value:
        first = next(iter(rewards), None)
        if first is None:
            body = load_causal(base, dtype=model.dtype)
            encoder = DocumentEncoder(body)
            trained["value_body"] = body.base_model.requires_grad_(True)
        else:
            learned = load_reward_model(rewards[first] / "model", dtype=model.dtype)
            encoder = learned.encoder
            trained["value_body"] = learned.model.base_model.requires_grad_(True)
        head = _value_head(encoder, None if first is None else (judges[first], weights[first]))
        critic = ValueRole(Role(encoder), head)
        trained["value_head"] = head
    return Roles(
        model, trained, Role(DocumentEncoder(model)), Role(DocumentEncoder(reference)), critic, judges, (), None
    )


def _use(adapters: Adapters, name: str | None) -> Callable[[], AbstractContextManager[None]]:
    return lambda: adapters.using(name)


def _stands_on(reward: Path, base: Path) -> bool:
    """Whether a finished reward stage left an adapter, and on the same base, weights and all."""
    settings = reward / "adapter" / "adapter_config.json"
    if not settings.exists():
        return False
    named = Path(str(read_json(settings)["base_model_name_or_path"]))
    return named == base or (named.is_dir() and fingerprint(named) == fingerprint(base))


def _score_of(reward: Path, device: torch.device) -> tuple[Tensor, float]:
    """The linear map and the bias of a finished reward stage, without the body between them."""
    folder = reward / "model"
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if "score.weight" in tensors.keys():  # noqa: SIM118 (it is no mapping)
                return tensors.get_tensor("score.weight").to(device), float(read_json(folder / "config.json")[BIAS_KEY])
    raise AssertionError(f"{folder} holds no score")  # `RewardModel.save` wrote it


def _reward_beside(folder: Path, dtype: torch.dtype) -> RewardRole:
    model: RewardModel = load_reward_model(folder / "model", dtype=dtype).requires_grad_(False)
    return RewardRole(Role(model.encoder), model.score.weight, model.bias)


def _value_head(encoder: DocumentEncoder, start: tuple[RewardRole, float] | None) -> nn.Linear:
    """A head that gives a reward model's score times a weight, or 0."""
    width = encoder.divided.head.weight.shape[1]
    head = nn.Linear(width, 1, device=encoder.device, dtype=torch.float32)
    with torch.no_grad():
        if start is None:
            head.weight.zero_()
            head.bias.zero_()
        else:
            judge, scale = start
            head.weight.copy_(judge.score * scale)
            head.bias.fill_(judge.bias * scale)
    return head
