"""Random walks on a graph: a benchmark of learning from rewards whose optimum is known.

It is trlX's, after Chen et al. (2021). A walk is a word: its letters are the nodes visited. The goal is node `a`; the
shorter the walk, the better. Walks drawn at random are poor, yet hold between them all that is needed to walk well.
Everything is drawn as trlX draws it (`examples/randomwalks/randomwalks.py`), so that its numbers can be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quilate.files import write_jsonl, write_text

GOAL = 0
SEED = 1000  # trlX's: its `train.seed`, not the default of its function (1002), whose graph is much easier


@dataclass(frozen=True)
class RandomWalks:
    """A graph and walks on it.

    Attributes:
        edges: [nodes, nodes] bool, from row to column; the goal leads only to itself.
        longest: most nodes of a walk.
        walks: drawn at random, as words.
    """

    edges: NDArray[np.bool_]
    longest: int
    walks: tuple[str, ...]

    @classmethod
    def make(
        cls, *, seed: int = SEED, nodes: int = 21, longest: int = 10, walks: int = 1000, density: float = 0.1
    ) -> RandomWalks:
        """Draw a graph until every node has an edge out, then walks from random nodes that end at the goal or after
        `longest` nodes.

        Raises:
            ValueError: a walk would be undefined or have no name: fewer than two nodes, or more than 26.
        """
        if not 2 <= nodes <= 26:
            raise ValueError(f"{nodes} nodes: there must be at least 2, and each must have a letter")
        draw = np.random.RandomState(seed)
        while True:
            edges = draw.rand(nodes, nodes) > 1 - density
            np.fill_diagonal(edges, False)
            if np.all(edges.sum(1)):
                break
        edges[GOAL, :] = False
        edges[GOAL, GOAL] = True
        drawn = []
        for _ in range(walks):
            node = draw.randint(nodes)
            while node == GOAL:
                node = draw.randint(nodes)
            walk = [node]
            while len(walk) < longest and node != GOAL:
                node = draw.choice(np.nonzero(edges[node])[0])
                walk.append(node)
            drawn.append(_word(walk))
        return cls(edges, longest, tuple(drawn))

    @property
    def starts(self) -> list[str]:
        """The letters to begin with, the goal's left out."""
        return [_word([node]) for node in range(1, len(self.edges))]

    def shortest(self) -> dict[str, int | None]:
        """Fewest nodes from each start to the goal, both counted; None where it needs more than `longest`."""
        nodes: dict[int, int] = {GOAL: 1}
        front = [GOAL]
        while front:
            reached = [int(n) for n in np.nonzero(self.edges[:, front].any(1))[0] if int(n) not in nodes]
            nodes |= dict.fromkeys(reached, max(nodes.values()) + 1)
            front = reached
        found = {_word([node]): nodes.get(node) for node in range(1, len(self.edges))}
        return {start: n if n is not None and n <= self.longest else None for start, n in found.items()}

    def optimality(self, walks: Sequence[str]) -> list[float]:
        """(longest - length) / (longest - shortest): 1 for a shortest walk, 0 for one that takes a step that is no
        edge, or does not arrive. What follows the goal is not looked at.

        A walk from where the goal cannot be reached in time scores 1 if it never took a false step, for there is
        nothing better to do (trlX divides 0 by 0).
        """
        shortest = self.shortest()
        return [self._optimality(walk, shortest) for walk in walks]

    def _optimality(self, walk: str, shortest: dict[str, int | None]) -> float:
        nodes = [ord(letter) - ord("a") for letter in walk]
        if not walk or walk[0] not in shortest:
            return 0.0
        arrived = nodes.index(GOAL) if GOAL in nodes else None
        nodes = nodes if arrived is None else nodes[: arrived + 1]
        legal = all(0 <= n < len(self.edges) for n in nodes)
        legal = legal and all(self.edges[a, b] for a, b in pairwise(nodes))
        best = shortest[walk[0]]
        if best is None or best == self.longest:
            return float(legal and (best is None or arrived is not None))
        length = len(nodes) if legal and arrived is not None else self.longest
        return (self.longest - min(length, self.longest)) / (self.longest - best)

    def reward(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The optimality of each walk that begins as its prompt and goes on as its completion."""
        return self.optimality([p + c for p, c in zip(prompts, completions, strict=True)])

    def write(self, folder: Path) -> None:
        """`walks.jsonl`, a reward-labelled data set, and `walks.txt`, the bare walks."""
        rewards = self.optimality(self.walks)
        rows = [{"prompt": w[0], "completion": w[1:], "reward": r} for w, r in zip(self.walks, rewards, strict=True)]
        write_jsonl(folder / "walks.jsonl", rows)
        write_text(folder / "walks.txt", "".join(f"{walk}\n" for walk in self.walks))


def _word(nodes: Sequence[int]) -> str:
    return "".join(chr(ord("a") + int(node)) for node in nodes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write trlX's random walks: walks.jsonl and walks.txt.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=SEED, help="of graph and walks")
    arguments = parser.parse_args()
    RandomWalks.make(seed=arguments.seed).write(arguments.folder)
