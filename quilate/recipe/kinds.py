"""Every kind of stage there is, by name."""

from __future__ import annotations

from typing import Any

from quilate.phases.baselines import BASELINE
from quilate.phases.evaluate import EVALUATE
from quilate.phases.finetune import FINETUNE
from quilate.phases.icl import ICL
from quilate.phases.inputs import BASE, TASK
from quilate.phases.stage import StageKind
from quilate.recipe.evidence_stage import REPORT

KINDS: dict[str, StageKind[Any]] = {kind.name: kind for kind in (TASK, BASE, BASELINE, ICL, FINETUNE, EVALUATE, REPORT)}
