"""Batches of a policy that learns from what it writes itself: rollouts, then several passes over them, then new ones.

`OnlineBatches[step]` is a function of the step and of the policy's weights at its iteration's first step. Rollouts are
therefore kept in the stage's folder until a checkpoint no longer needs them: a run stopped in the middle of an
iteration goes on with the very completions it had.

Shapes: B completions of an iteration, T the longest one's tokens; S completion tokens of a micro-batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from quilate.data.batches import epoch_orders
from quilate.data.packing import Example, PackedBatch, pack, pack_shared, split_by_tokens, split_shared
from quilate.engine.checkpoint import NAME as CHECKPOINT
from quilate.files import digest, make_folder, read_jsonl, write_bytes, write_jsonl
from quilate.phases.align.rollouts import Prompt, example_of, gather
from quilate.rng import numpy_stream

LOG = "rollouts.jsonl"


@dataclass(frozen=True)
class Experience:
    """An iteration's completions as its updates need them; 0 outside the mask.

    Attributes:
        prompts: [B] int64, places among the stage's prompts.
        tokens: [B, T] int64; mask: [B, T].
        log_probs: [B, T] of the policy that wrote them; reference: [B, T].
        advantages: [B, T]; values, returns: [B, T], empty without a value model.
        log: what is shown of the iteration, JSON-able.
    """

    prompts: Tensor
    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    reference: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor
    log: dict[str, Any]

    def write(self, path: Path) -> None:
        tensors = {f.name: getattr(self, f.name).contiguous() for f in fields(self) if f.name != "log"}
        write_bytes(path, save(tensors, metadata={"log": json.dumps(self.log)}))

    @classmethod
    def read(cls, path: Path) -> Experience:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return cls(**tensors, log=json.loads(file.metadata()["log"]))


@dataclass(frozen=True)
class _Part:
    packed: PackedBatch

    @property
    def ids(self) -> tuple[str, ...]:
        return self.packed.ids

    @property
    def tokens(self) -> int:
        return self.packed.tokens

    @property
    def supervised_tokens(self) -> int:
        return 0

    @property
    def weight(self) -> int:
        return 0


@dataclass(frozen=True)
class PolicyPart(_Part):
    """Completions for the policy; the tensors are [S]. A step's losses are divided by these tokens.

    Attributes:
        old_log_probs: of the policy that wrote them; None where that is the policy as it is.
    """

    old_log_probs: Tensor | None
    reference: Tensor
    advantages: Tensor

    @property
    def supervised_tokens(self) -> int:
        return self.packed.supervised_tokens

    @property
    def weight(self) -> int:
        return self.packed.supervised_tokens


@dataclass(frozen=True)
class ValuePart(_Part):
    """The same completions for the value model: apart, so that one model's activations are in memory at once."""

    old_values: Tensor
    returns: Tensor


@dataclass(frozen=True)
class TextPart(_Part):
    """Pretraining text (PPO-ptx). `share`: what the sum of its losses is multiplied by, so that divided by the step's
    weight it is a mean over the step's text tokens."""

    share: float


OnlinePart = PolicyPart | ValuePart | TextPart


@dataclass(frozen=True)
class Iteration:
    """Rollouts of some prompts and the steps that learn from them: `steps` lists each step's completions by place."""

    number: int
    first_step: int
    prompts: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]


def plan_iterations(
    prompts: int, *, epochs: float, per_iteration: int, per_prompt: int, batch_size: int, passes: int, seed: int
) -> list[Iteration]:
    """Every iteration of a run: prompts in shuffled epochs, each continued `per_prompt` times, its completions shuffled
    anew in each of `passes` passes. The last iteration takes what is left.

    Args:
        per_iteration: prompts an iteration; batch_size: completions a step.
    """
    visits = np.concatenate([np.array([], dtype=np.int64), *epoch_orders(prompts, epochs, seed)])
    plan: list[Iteration] = []
    step = 0
    for number, chosen in enumerate(np.split(visits, range(per_iteration, len(visits), per_iteration))):
        count = len(chosen) * per_prompt
        orders = [numpy_stream(seed, "updates", number, i).permutation(count) for i in range(passes)]
        parts = [part for order in orders for part in np.split(order, range(batch_size, count, batch_size))]
        rows = tuple(tuple(int(row) for row in part) for part in parts)
        plan.append(Iteration(number, step, tuple(int(i) for i in np.repeat(chosen, per_prompt)), rows))
        step += len(rows)
    return plan


class OnlineBatches:
    """All batches of a run; see the module's text.

    Args:
        prompts: the stage's; plan: of `plan_iterations` for as many.
        explore: makes an iteration's experience with the policy as it is now, given the logs of all before.
        texts: for PPO-ptx, a step's examples and what their mean loss weighs.
        settings: anything else that decides the data, for the fingerprint.
    """

    def __init__(
        self,
        folder: Path,
        prompts: Sequence[Prompt],
        plan: Sequence[Iteration],
        explore: Callable[[Iteration, list[dict[str, Any]]], Experience],
        *,
        micro_batch_tokens: int,
        texts: Callable[[int], tuple[list[Example], float]] | None = None,
        settings: Mapping[str, Any],
    ) -> None:
        self.folder, self.prompts, self.plan, self.explore = folder, prompts, plan, explore
        self.micro_batch_tokens, self.texts = micro_batch_tokens, texts
        self._iterations = [iteration for iteration in plan for _ in iteration.steps]
        self._current: tuple[int, Experience] | None = None
        content = [[p.id, p.tokens] for p in prompts], [[i.prompts, i.steps] for i in plan]
        self.fingerprint = digest([*content, micro_batch_tokens, dict(settings)])

    def __len__(self) -> int:
        return len(self._iterations)

    def __getitem__(self, step: int) -> list[OnlinePart]:
        iteration = self._iterations[step]
        experience = self._experience(iteration)
        rows = iteration.steps[step - iteration.first_step]
        examples = [self._example(experience, row) for row in rows]
        policy: list[OnlinePart] = []
        values: list[OnlinePart] = []
        for part in split_shared(examples, self.micro_batch_tokens):
            packed = pack_shared(part)
            order = [int(id.rpartition("/")[2]) for id in packed.ids]
            flat = {
                name: gather(getattr(experience, name), experience.mask, order)
                for name in ("log_probs", "reference", "advantages")
            }
            old_log_probs = flat["log_probs"] if len(iteration.steps) > 1 else None
            policy.append(PolicyPart(packed, old_log_probs, flat["reference"], flat["advantages"]))
            if experience.values.numel():
                old, returns = (gather(t, experience.mask, order) for t in (experience.values, experience.returns))
                values.append(ValuePart(packed, old, returns))
        return [*policy, *values, *self._text_parts(step, sum(part.weight for part in policy))]

    def _text_parts(self, step: int, weight: int) -> list[OnlinePart]:
        if self.texts is None:
            return []
        examples, factor = self.texts(step)
        share = factor * weight / sum(example.supervised_tokens for example in examples)
        return [TextPart(pack(part), share) for part in split_by_tokens(examples, self.micro_batch_tokens)]

    def _example(self, experience: Experience, row: int) -> Example:
        place = int(experience.prompts[row])
        completion = experience.tokens[row][experience.mask[row]].tolist()
        return example_of(f"{self.prompts[place].id}/{row}", self.prompts[place], completion)

    def _experience(self, iteration: Iteration) -> Experience:
        if self._current is None or self._current[0] != iteration.number:
            path = self._path(iteration.number)
            earlier = [row for row in self.log() if row["iteration"] < iteration.number]
            if path.exists():
                experience = Experience.read(path)
            else:
                experience = self.explore(iteration, earlier)
                make_folder(path.parent)
                experience.write(path)
            write_jsonl(self.folder / LOG, [*earlier, experience.log])
            self._prune(iteration.number)
            self._current = iteration.number, experience
        return self._current[1]

    def log(self) -> list[dict[str, Any]]:
        """What is shown of every iteration so far."""
        path = self.folder / LOG
        return read_jsonl(path) if path.exists() else []

    def _path(self, number: int) -> Path:
        return self.folder / "rollouts" / f"{number:06d}.safetensors"

    def _prune(self, current: int) -> None:
        """Rollouts older than the oldest checkpoint's are no longer needed; without one they can all be made again,
        but are kept to save the time."""
        names = [CHECKPOINT.fullmatch(path.name) for path in (self.folder / "checkpoints").glob("step-*")]
        steps = [int(name[1]) for name in names if name is not None]
        if not steps:
            return
        oldest = min(self._iterations[min(min(steps), len(self) - 1)].number, current)
        for path in (self.folder / "rollouts").glob("*.safetensors"):
            if int(path.stem) < oldest:
                path.unlink()


def stacked_tokens(completions: Sequence[Sequence[int]], mask: Tensor) -> Tensor:
    """[B, T] int64, 0 outside the mask."""
    tokens = torch.zeros(mask.shape, dtype=torch.int64)
    for row, completion in enumerate(completions):
        tokens[row, : len(completion)] = torch.tensor(completion)
    return tokens
