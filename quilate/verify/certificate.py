"""What a certificate says: one line a check, each with its figure, its tolerance and what was compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from quilate.files import write_json

SCHEMA = 1
FILE = "certificate.json"

Outcome = Literal["pass", "fail", "not applicable"]

# Two orders of the same sums differ by rounding. fp32: some hundred times the 1e-6 seen on small models (guess). bf16
# keeps 8 bits of a number, 2^-8 = 0.004; five of its units (guess).
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Check:
    """One line of a certificate.

    Attributes:
        name: of the check, see `quilate.verify.certify.CHECKS`.
        compared: what was compared with what, on how many rows.
        outcome: "not applicable" always comes with a reason.
        figure: the number that `tolerance` is an upper limit of; None where nothing was measured.
        reason: why it failed or does not apply.
        figures: everything else that was counted or measured, by name.
    """

    name: str
    compared: str
    outcome: Outcome
    figure: float | None = None
    tolerance: float | None = None
    reason: str = ""
    figures: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What a check returns: the certificate gives it its name.

    Attributes:
        problem: what is wrong whatever the figure says; "" when nothing is.
        unit: of `figure`, in words.
    """

    compared: str
    figure: float
    tolerance: float
    unit: str
    problem: str = ""
    figures: Mapping[str, float | int | str] = field(default_factory=dict)

    def as_check(self, name: str) -> Check:
        within = self.figure <= self.tolerance  # False for a NaN
        beyond = "" if within else f"{self.figure:.4g} {self.unit}, at most {self.tolerance:.4g} is allowed"
        reason = "; ".join(filter(None, (self.problem, beyond)))
        outcome: Outcome = "fail" if reason else "pass"
        return Check(name, self.compared, outcome, self.figure, self.tolerance, reason, self.figures)


class DoesNotApply(Exception):
    """A check has nothing to compare in this stage; the text says why."""


@dataclass(frozen=True)
class Certificate:
    """Attributes: `state` is "finished" or "planned"; `dtype` is what the stage computes in."""

    stage: str
    kind: str
    id: str
    seed: int
    state: Literal["finished", "planned"]
    dtype: str
    checks: tuple[Check, ...]
    versions: Mapping[str, str]

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.outcome == "fail")

    def as_json(self) -> dict[str, Any]:
        """JSON-able; a figure that is not finite is kept as its name."""
        value = {"schema": SCHEMA, "passed": not self.failed} | asdict(self)
        value["checks"] = [_plain(asdict(check)) for check in self.checks]
        return value

    def write(self, folder: Path) -> Path:
        """Leave it in the stage's folder, atomically."""
        write_json(folder / FILE, self.as_json())
        return folder / FILE


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    finite = not isinstance(value, float) or abs(value) < float("inf")  # a NaN compares as False
    return value if finite else str(value)
