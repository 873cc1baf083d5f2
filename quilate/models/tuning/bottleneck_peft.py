"""Bottleneck adapters as a method of peft.

peft has no such method, so it is given one through the tables that its own `register_peft_method` fills (that function
itself takes only names from a closed enumeration). An adapter is then saved, loaded, switched and disabled like any
other of peft's; plain peft reads it after `import quilate.models.tuning.bottleneck_peft`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from quilate.errors import ModelError

PEFT_TYPE = "BOTTLENECK"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": nn.functional.gelu, "relu": nn.functional.relu}


@dataclass
class PeftBottleneckConfig(peft.PeftConfig):  # type: ignore[misc]
    """What `adapter_config.json` says of an adapter of this kind."""

    size: int = field(default=64)
    activation: str = field(default="gelu")
    target_modules: list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    exclude_modules: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """`y + up(activation(down(y)))` with y what the wrapped layer gives: the identity, nearly, at the start."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PeftBottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activations: dict[str, str] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: PeftBottleneckConfig) -> None:
        """Put a fresh adapter beside those that are there."""
        peft_self: Any = self  # mypy sees torch's modules only, and peft has no types
        base_layer = peft_self.get_base_layer()
        # transformers' Conv1D (GPT-2) keeps its weight transposed, and names its output width.
        width = getattr(base_layer, "nf", None) or base_layer.weight.shape[0]
        for place, shape in ((self.bottleneck_down, (width, config.size)), (self.bottleneck_up, (config.size, width))):
            linear = nn.Linear(*shape)
            # Houlsby et al. 2019, section 2.1: a normal of deviation 1e-2, cut off at two deviations.
            nn.init.trunc_normal_(linear.weight, std=1e-2, a=-2e-2, b=2e-2)
            nn.init.zeros_(linear.bias)
            place[adapter_name] = linear
        self.activations[adapter_name] = config.activation
        peft_self._move_adapter_to_device_of_base_layer(adapter_name)
        peft_self.set_adapter(peft_self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        peft_self: Any = self
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if peft_self.disable_adapters:
            return result
        for name in peft_self.active_adapters:
            if name in self.bottleneck_down:
                inner = ACTIVATIONS[self.activations[name]](self.bottleneck_down[name](result))
                result = result + self.bottleneck_up[name](inner)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: a nonlinear network has no place in the weights of a linear layer.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "a bottleneck adapter cannot be merged into its base: it is not linear",
            hint="train on top of a full or LoRA model instead",
        )


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """What peft wraps a model in."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (peft reads it from the class; targets are always named)

    def _create_and_replace(
        self,
        peft_config: PeftBottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:  # an adapter beside the one in use does not train with it
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


peft.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = PeftBottleneckConfig
peft.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = BottleneckModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = BottleneckModel.prefix
