"""Cost and loss of training as closed formulas: FLOPs, GPU hours, price, memory, what a budget buys.

N is a model's parameters, D the tokens it is trained on, C the floating-point operations.
"""

from __future__ import annotations

from dataclasses import dataclass

# Share of a GPU's peak that training reaches. LLaMA-7B and -65B and Falcon-40B and -180B, by their published hours,
# reached 0.44, 0.48, 0.39 and 0.48; one number between them is within 15 % of each (tests/plan/test_formulas.py).
MFU = 0.43

# Besiroglu et al. 2024, "Chinchilla Scaling: A replication attempt": L = E + A / N^alpha + B / D^beta, in nats a token.
# They refit the data of Hoffmann et al. 2022, whose own fit contradicts their two other methods.
E, A, ALPHA, B, BETA = 1.8172, 482.01, 0.3478, 2085.43, 0.3658

# Bytes of a trained parameter: bf16 weight 2 and gradient 2, fp32 master 4 and AdamW's two moments 8 (Rajbhandari et
# al. 2020, "ZeRO", section 3.1); a frozen one is its bf16 weight.
TRAINED_BYTES, FROZEN_BYTES = 16, 2
ACCUMULATED_BYTES = 4  # more, of the fp32 sum of gradients, where a step has several micro-batches

# Bytes of activations that one layer keeps of one token for its backward pass, in units of the hidden size (Korthikanti
# et al. 2022, equation 1, without the attention scores, which flash attention does not keep); with gradient
# checkpointing, of the layer's input alone.
ACTIVATION_BYTES, CHECKPOINTED_BYTES = 34, 2


def training_flops(parameters: float, tokens: float, trainable: float | None = None) -> float:
    """6ND, of all parameters; less for frozen ones, whose own gradient is not computed (Kaplan et al. 2020)."""
    return tokens * (4.0 * parameters + 2.0 * (parameters if trainable is None else trainable))


def reading_flops(parameters: float, tokens: float) -> float:
    """2ND: a forward pass alone."""
    return 2.0 * parameters * tokens


def gpu_hours(flops: float, peak_flops: float, mfu: float = MFU) -> float:
    """Hours of one GPU of `peak_flops` (per second) of which `mfu` is reached."""
    return flops / (peak_flops * mfu * 3600)


def affordable_parameters(budget: float, tokens: float, price_per_hour: float, peak_flops: float, mfu: float) -> float:
    """The largest dense model that `budget` trains on `tokens`: 6ND solved for N."""
    return budget / price_per_hour * 3600 * peak_flops * mfu / (6 * tokens)


def expected_loss(parameters: float, tokens: float) -> float:
    """Nats a token that a model of that size reaches after that many tokens (see `E`)."""
    return float(E + A / parameters**ALPHA + B / tokens**BETA)


def compute_optimal(flops: float) -> tuple[float, float]:
    """N and D of the lowest `expected_loss` with 6ND = `flops` (Hoffmann et al. 2022, equation 4)."""
    ratio = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    parameters = ratio * (flops / 6) ** (BETA / (ALPHA + BETA))
    return parameters, flops / 6 / parameters


@dataclass(frozen=True)
class Dimensions:
    """What memory depends on; `vocabulary` is the width of the logits."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int


def training_memory(
    model: Dimensions,
    trainable: int,
    micro_batch_tokens: int,
    *,
    several_micro_batches: bool = False,
    gradient_checkpointing: bool = False,
    shards: int = 1,
) -> float:
    """Bytes on each of `shards` devices that share weights, gradients and optimizer state (ZeRO-3, FSDP).

    Every device keeps the activations of its own `micro_batch_tokens`. The logits are not in it: they are formed in
    chunks.
    """
    kept = trainable * (TRAINED_BYTES + ACCUMULATED_BYTES * several_micro_batches)
    frozen = (model.parameters - trainable) * FROZEN_BYTES
    of_a_token = model.layers * model.hidden * (CHECKPOINTED_BYTES if gradient_checkpointing else ACTIVATION_BYTES)
    one_layer = model.hidden * ACTIVATION_BYTES * gradient_checkpointing  # recomputed, one at a time
    return (kept + frozen) / shards + micro_batch_tokens * (of_a_token + one_layer)


def reading_memory(model: Dimensions) -> float:
    """Bytes of a model that is only asked: its bf16 weights."""
    return float(model.parameters * FROZEN_BYTES)
