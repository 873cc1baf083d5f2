"""Every kind of stage there is, by name; a kind's module is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from quilate.phases.stage import StageKind

KINDS = {
    "task": "quilate.phases.inputs:TASK",
    "base": "quilate.phases.inputs:BASE",
    "curate": "quilate.phases.curate:CURATE",
    "corpus": "quilate.phases.corpus:CORPUS",
    "conversations": "quilate.phases.conversations:CONVERSATIONS",
    "preferences": "quilate.phases.align.preferences:PREFERENCES",
    "pretrain": "quilate.phases.pretrain:PRETRAIN",
    "adapt": "quilate.phases.adapt:ADAPT",
    "sft": "quilate.phases.sft:SFT",
    "reward": "quilate.phases.align.reward:REWARD",
    "dpo": "quilate.phases.align.dpo:DPO",
    "ppo": "quilate.phases.align.ppo:PPO",
    "cloning": "quilate.phases.align.cloning:CLONING",
    "ilql": "quilate.phases.align.ilql:ILQL",
    "grpo": "quilate.phases.align.grpo:GRPO",
    "privacy": "quilate.phases.privacy:PRIVACY",
    "distill": "quilate.phases.align.distill:DISTILL",
    "derive": "quilate.phases.align.derive:DERIVE",
    "assay": "quilate.phases.align.assay:ASSAY",
    "baseline": "quilate.phases.baselines:BASELINE",
    "icl": "quilate.phases.icl:ICL",
    "api": "quilate.phases.api:API",
    "finetune": "quilate.phases.finetune:FINETUNE",
    "multitask": "quilate.phases.multitask:MULTITASK",
    "ask": "quilate.phases.asking:ASK",
    "evaluate": "quilate.phases.evaluate:EVALUATE",
    "alignment": "quilate.recipe.alignment_stage:ALIGNMENT",
    "report": "quilate.recipe.evidence_stage:REPORT",
}


def stage_kind(name: str) -> StageKind[Any]:
    """The kind called `name`, one of `KINDS`."""
    module, attribute = KINDS[name].split(":")
    kind: StageKind[Any] = getattr(import_module(module), attribute)
    return kind
