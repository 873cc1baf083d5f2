"""All checks of one stage, one after another."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from quilate.errors import Interrupted, MachineError, QuilateError
from quilate.verify.certificate import Certificate, Check, DoesNotApply, Finding
from quilate.verify.computed import accumulation_splits_agree, packed_is_separate
from quilate.verify.killed import kill_and_resume
from quilate.verify.saved import export_parity, files_unaltered, merge_parity
from quilate.verify.stage import Examined, name_of
from quilate.verify.trained_on import leaks, template_round_trip, token_counts

CHECKS: dict[str, Callable[[Examined], Finding]] = {
    "token counts": token_counts,
    "template round trip": template_round_trip,
    "leaks": leaks,
    "packed = separate": packed_is_separate,
    "accumulation splits": accumulation_splits_agree,
    "kill and resume": kill_and_resume,
    "files": files_unaltered,
    "merge": merge_parity,
    "export": export_parity,
}


def certify(
    examined: Examined, *, stage: str, id: str, progress: Callable[[str], None] = lambda _: None
) -> Certificate:
    """Run every check; an error of model, data or config that stops one is its failure.

    Args:
        stage: the stage's name and `id`, as in the run's plan.
        progress: called with the name of each check before it.

    Raises:
        Interrupted: a stop was requested.
        MachineError: the disk is full, say.
    """
    checks = []
    examined.clean()  # of a run of this that was killed
    try:
        for name, check in CHECKS.items():
            examined.context.stop.raise_if_set()
            progress(name)
            checks.append(_checked(name, check, examined))
    finally:
        examined.clean()
    return Certificate(
        stage=stage,
        kind=examined.config.kind,
        id=id,
        seed=examined.context.seed,
        state="planned" if examined.manifest is None else "finished",
        dtype=name_of(examined.dtype),
        checks=tuple(checks),
        versions={name: version(name) for name in ("quilate", "torch", "transformers", "peft", "tokenizers")},
    )


def _checked(name: str, check: Callable[[Examined], Finding], examined: Examined) -> Check:
    try:
        return check(examined).as_check(name)
    except DoesNotApply as reason:
        return Check(name, "", "not applicable", reason=str(reason))
    except (Interrupted, MachineError):
        raise
    except QuilateError as error:
        return Check(name, "", "fail", reason=error.message)
