"""Named random streams, each derived from one seed, each saved and restored with a checkpoint.

A draw from one stream never moves another: logging or evaluating in the middle of training cannot change the
training's data order or dropout masks.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch takes over a second to import; what only draws with NumPy need not wait for it
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for a named purpose: SHA-256 of the seed and the names."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A fresh NumPy generator for a named purpose."""
    return np.random.default_rng(derive_seed(seed, *names))


class Streams:
    """The torch random streams of one training run.

    `torch_global` (dropout, initialization) is torch's own default generator, seeded here; further streams are
    private generators made on first use.
    """

    def __init__(self, seed: int) -> None:
        import torch

        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}
        torch.manual_seed(derive_seed(seed, "torch_global"))

    def __getitem__(self, name: str) -> torch.Generator:
        import torch

        if name not in self._generators:
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, name))
            self._generators[name] = generator
        return self._generators[name]

    def state(self) -> dict[str, torch.Tensor]:
        """Every stream's state as byte tensors, for a checkpoint."""
        import torch

        states = {f"stream.{name}": generator.get_state() for name, generator in self._generators.items()}
        states["torch_global"] = torch.get_rng_state()
        if torch.cuda.is_available():
            states["torch_cuda"] = torch.cuda.get_rng_state()
        return states

    def restore(self, states: dict[str, Any]) -> None:
        """Put every stream back where `state` found it."""
        import torch

        for name, state in states.items():
            if name == "torch_global":
                torch.set_rng_state(state)
            elif name == "torch_cuda":
                if torch.cuda.is_available():
                    torch.cuda.set_rng_state(state)
            else:
                self[name.removeprefix("stream.")].set_state(state)
