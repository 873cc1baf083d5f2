"""trlX's random walks: its reference values, and optimality by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from quilate.files import read_jsonl
from quilate.tasks.randomwalks import RandomWalks


def chain(*edges: str, nodes: int = 4, longest: int = 4) -> RandomWalks:
    matrix = np.zeros((nodes, nodes), dtype=bool)
    for start, end in edges:
        matrix[ord(start) - ord("a"), ord(end) - ord("a")] = True
    return RandomWalks(matrix, longest, ())


@pytest.mark.parametrize(
    ("seed", "edges", "optimality", "arrived"),
    [(1000, 51, 0.3515, 0.560), (1002, None, 0.7902, 0.985), (1, None, 0.212, None)],
)
def test_reference_values(seed: int, edges: int | None, optimality: float, arrived: float | None) -> None:
    """Of trlX's own generator, run by us; the edges are counted without the goal's loop."""
    walks = RandomWalks.make(seed=seed)
    assert mean(walks.optimality(walks.walks)) == pytest.approx(optimality, abs=5e-4)
    if edges is not None:
        assert walks.edges.sum() - 1 == edges
        assert mean(n for n in walks.shortest().values() if n is not None) == pytest.approx(3.65)
    if arrived is not None:
        assert mean(walk.endswith("a") for walk in walks.walks) == pytest.approx(arrived)


def test_every_walk_follows_edges_and_stops_at_the_goal() -> None:
    walks = RandomWalks.make(walks=300)
    for walk in walks.walks:
        assert 2 <= len(walk) <= 10 and "a" not in walk[:-1]
        assert all(walks.edges[ord(x) - 97, ord(y) - 97] for x, y in pairwise(walk))
    assert {walk[0] for walk in walks.walks} == set(walks.starts)


def test_optimality_by_hand() -> None:
    walks = chain("ba", "cb", "bc", "dd", "aa")
    assert walks.shortest() == {"b": 2, "c": 3, "d": None}
    given = {
        "ba": 1.0, "bad": 1.0, "bcba": 0.0, "cba": 1.0, "ca": 0.0, "bc": 0.0, "": 0.0, "a": 0.0, "bé": 0.0, "bz": 0.0,
        "ddd": 1.0, "db": 0.0,
    }  # fmt: skip
    assert dict(zip(given, walks.optimality(list(given)), strict=True)) == given
    longer = chain("ba", "cb", "bc", "aa", longest=6)
    assert longer.reward(["b", "c"], ["cba", "bcba"]) == [0.5, pytest.approx(1 / 3)]


def test_a_walk_that_needs_every_step_is_all_or_nothing() -> None:
    walks = chain("ba", "cb", "dc", "dd")
    assert walks.optimality(["dcba", "ddcb", "dcb"]) == [1.0, 0.0, 0.0]


def test_the_shipped_walks_are_what_is_drawn(tmp_path: Path) -> None:
    RandomWalks.make().write(tmp_path)
    shipped = Path(__file__).parents[2] / "recipes" / "randomwalks"
    for name in ("walks.jsonl", "walks.txt"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()
    rows = read_jsonl(shipped / "walks.jsonl")
    assert mean(row["reward"] for row in rows) == pytest.approx(0.3515, abs=5e-4)


def test_too_many_nodes_have_no_letters() -> None:
    with pytest.raises(ValueError, match="27 nodes"):
        RandomWalks.make(nodes=27)
