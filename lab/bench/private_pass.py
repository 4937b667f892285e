"""What it costs to make a loaded UNet differentiable: our private tree, functional_call, a deep copy.

    python run.py bench private_pass

True SD1.5 and SDXL architectures with bfloat16 weights made under inference mode, as nodes make them. Prints a table;
nothing is
asserted. `copied` is memory that the way allocates for weights, `touches` whether the loaded module is changed for the
duration.
"""

from __future__ import annotations

import copy
import statistics
import time

import comfy.model_base
import comfy.supported_models
import torch

from ...backbone.private import PrivateTwin, storage_view
from ...backbone.unet import UNetFamily
from ..testbed import small

REPEATS = 7


def load(config_class: type, shape: dict) -> torch.nn.Module:
    """A BaseModel of the true size; the values do not matter here, so they stay zero."""
    with torch.inference_mode():
        config = config_class(dict(shape, dtype=torch.bfloat16))
        config.set_inference_dtype(torch.bfloat16, None)
        base = config.get_model({}, "", device=torch.device("cpu"))
        for p in base.diffusion_model.parameters():
            p.data = torch.zeros_like(p)
    return base


class Nothing(torch.nn.Module):
    """Lets functional_call swap the weights in and out around no work at all."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self) -> None:
        return None


def through_functional_call(base: torch.nn.Module) -> None:
    call = Nothing(base)
    views = {name: storage_view(p) for name, p in call.named_parameters()}
    torch.func.functional_call(call, views, ())


def through_deep_copy(base: torch.nn.Module) -> None:
    twin = copy.deepcopy(base.diffusion_model)
    for module in twin.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = p.detach().clone()


def median_ms(action: object, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(name: str, config: type, shape: dict) -> None:
    """Print one model's three rows."""
    base = load(config, shape)
    size = sum(p.numel() * p.element_size() for p in base.diffusion_model.parameters()) / 2**20
    with torch.inference_mode(False):
        tree = median_ms(lambda: PrivateTwin(UNetFamily(base), torch.device("cpu")), REPEATS)
        swap = median_ms(lambda: through_functional_call(base), REPEATS)
        deep = median_ms(lambda: through_deep_copy(base), 1)
    print(f"{name:6} {'private tree, once a run':34} {tree:9.1f} {0:6.0f} MB  no")
    print(f"{name:6} {'functional_call, every gradient':34} {swap:9.1f} {0:6.0f} MB  yes")
    print(f"{name:6} {'deep copy, once a run':34} {deep:9.1f} {size:6.0f} MB  no")


def main(words: list[str]) -> None:
    print(f"{'model':6} {'way':34} {'ms':>9} {'copied':>9}  touches the loaded model")
    measure("SD1.5", comfy.supported_models.SD15, small.SD15_FULL)
    measure("SDXL", comfy.supported_models.SDXL, small.SDXL_FULL)
