"""`alignment.json`: read it, and put what stages measured into its form (`Alignment` in quilate.evaluation.schema)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

import quilate
from quilate.errors import DataError
from quilate.evaluation.schema import Alignment, ArmEvidence, Comparison, PairAccuracy, Range, Tax


def parse_alignment(value: Mapping[str, Any]) -> Alignment:
    """Read the content of an `alignment.json`.

    Raises:
        DataError: it is not one of this version.
    """
    try:
        return Alignment.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"this is no alignment.json that quilate {quilate.__version__} can read: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint="run `quilate run` again with this version; finished stages are reused",
        ) from error


def pair_accuracy(
    report: Mapping[str, Any], *, stage: str, by: Literal["reward", "implied reward", "log-probability"], set: str,
    derived: bool,
) -> PairAccuracy:  # fmt: skip
    """Of a `pair_report` (quilate.evaluation.preferences)."""
    ranges = {name: Range(**report[name]) for name in ("accuracy", "length_only", "difference")}
    counts = {name: report[name] for name in ("pairs", "groups", "prefers")}
    return PairAccuracy(stage=stage, by=by, set=set, derived=derived, **counts, **ranges)


def task_tax(
    arms: Sequence[ArmEvidence], comparisons: Sequence[Comparison], unaligned: Mapping[str, str], *, metric: str,
    task: str,
) -> list[Tax]:  # fmt: skip
    """What alignment did to the score on a task: arms on aligned models against those on no alignment.

    Args:
        unaligned: arm on an aligned model -> the arm that differs from it only in standing on no alignment.
    """
    scores = {arm.name: arm.score for arm in arms}
    differences = {(c.a, c.b): Range(estimate=c.difference, low=c.ci95[0], high=c.ci95[1]) for c in comparisons}
    rows = []
    for arm, plain in unaligned.items():
        if (arm, plain) in differences:
            difference = differences[arm, plain]
        else:
            found = differences[plain, arm]
            low, high = (None if end is None else -end for end in (found.high, found.low))
            difference = Range(estimate=-found.estimate, low=low, high=high)
        rows.append(
            Tax(policy=arm, start=plain, measure=metric, of=task, before=scores[plain], after=scores[arm],
                difference=difference, higher_is_better=True)
        )  # fmt: skip
    return rows
