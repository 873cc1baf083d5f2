"""Random streams: named, independent, saved and restored."""

from __future__ import annotations

import numpy as np
import torch

from quilate.rng import Streams, derive_seed, numpy_stream


def test_a_draw_from_one_stream_never_moves_another() -> None:
    quiet, busy = Streams(3), Streams(3)
    torch.rand(100, generator=busy["rounding"])
    assert torch.equal(torch.rand(5, generator=quiet["order"]), torch.rand(5, generator=busy["order"]))
    state = torch.get_rng_state()
    torch.rand(100, generator=busy["order"])
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_of_other_names_and_seeds_differ() -> None:
    draws = [torch.rand(4, generator=Streams(seed)[name]).tolist() for seed in (0, 1) for name in ("a", "b")]
    assert len({tuple(d) for d in draws}) == 4
    assert derive_seed(1, "a", 2) != derive_seed(1, "a2") != derive_seed(12, "a")
    assert derive_seed(7, "orden") == derive_seed(7, "orden")
    assert all(0 <= derive_seed(n, "x") < 2**63 for n in range(50))
    assert not np.array_equal(numpy_stream(1, "order", 0).random(3), numpy_stream(1, "order", 1).random(3))


def test_restoring_brings_every_stream_back() -> None:
    streams = Streams(3)
    torch.rand(3, generator=streams["rounding"])
    torch.rand(3)
    saved = {name: state.clone() for name, state in streams.state().items()}
    expected = torch.rand(4, generator=streams["rounding"]), torch.rand(4)
    other = Streams(99)
    other.restore(saved)
    assert torch.equal(torch.rand(4, generator=other["rounding"]), expected[0])
    assert torch.equal(torch.rand(4), expected[1])
