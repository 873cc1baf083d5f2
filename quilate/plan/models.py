"""The models that stages will start from, before there are any: directories of the same shape, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quilate.files import atomic_folder, cache_folder, digest, read_json, write_json
from quilate.phases.language_modelling import CorpusMixture
from quilate.phases.pretrain import PretrainConfig, tokenizer_of
from quilate.phases.stage import StageContext
from quilate.plan.formulas import Dimensions
from quilate.plan.took import Took

TOKENIZER_TOOK = "tokenizer-took.json"


@dataclass(frozen=True)
class Model:
    """`directory` holds a model of the right shape and tokenizer, its weights perhaps random; `adapter` is what will
    stand on it unmerged (see `ProbeSpec.tuning`)."""

    directory: Path
    adapter: Mapping[str, Any] | None = None

    def merged(self) -> Model:
        """What a stage that trains on top of it starts from."""
        return Model(self.directory)

    def dimensions(self, tuning: Mapping[str, Any] | None) -> tuple[Dimensions, int]:
        """Its size with that tuning, and how many parameters train; nothing is loaded."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

        from quilate.models.load import is_masked_directory
        from quilate.plan.probe import tuned

        config = AutoConfig.from_pretrained(self.directory, local_files_only=True, trust_remote_code=False)
        factory = AutoModelForMaskedLM if is_masked_directory(self.directory) else AutoModelForCausalLM
        with torch.device("meta"):
            model = factory.from_config(config, dtype=torch.bfloat16)
            if tuning is not None:
                model = tuned(model, dict(tuning), self.directory)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        parameters = sum(p.numel() for p in model.parameters())
        layers = int(config.num_hidden_layers)
        return Dimensions(parameters, int(config.hidden_size), layers, int(config.vocab_size)), trainable


def stand_in(context: StageContext[PretrainConfig], mixture: CorpusMixture, contents: list[str]) -> tuple[Model, Took]:
    """A directory with the tokenizer and the shape that a `pretrain` stage will have, its weights untrained.

    Args:
        contents: identities of the corpora; with the config they say whether it was made before.

    Returns:
        The model, and the time that the tokenizer took.
    """
    import transformers

    from quilate.models.create import create
    from quilate.models.load import save_model
    from quilate.phases.pretrain import is_masked_shape, shape_of

    config = context.config
    shape = {k: v for k, v in config.as_json().items() if k in ("shape", "size", "config", "vocabulary", "tokenizer")}
    folder = cache_folder() / "shapes" / digest([shape, config.context, contents, TOKENIZER_TOOK])[:24]
    if not folder.is_dir():
        transformers.utils.logging.disable_progress_bar()
        started = Took.so_far()
        tokenizer = tokenizer_of(context, mixture)
        took = Took.so_far() - started
        described = shape_of(context, tokenizer)
        model = create(described, masked=is_masked_shape(config, described))
        with atomic_folder(folder) as place:
            save_model(model, tokenizer, place)
            write_json(place / TOKENIZER_TOOK, asdict(took))
    return Model(folder), Took(**read_json(folder / TOKENIZER_TOOK))


def pretend_stage(folder: Path, model: Model) -> Path:
    """A stage folder that says its model is `model`, for code that reads finished stages."""
    write_json(folder / "model.json", {"path": str(model.directory)})
    return folder
