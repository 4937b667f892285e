"""The floor under a guided step at the sizes that people use: the floating-point operations of a UNet's forward and
backward, counted on tensors that have a shape and no data. Seconds on any machine.

Counted are the passes alone: what compares the features with the reference's comes on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from _contenders import ON_CPU
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ops import disable_weight_init
from omniportrait.guidance.settings import Settings
from omniportrait.guidance.unet import default_block
from torch.utils.flop_counter import FlopCounterMode

GUIDED = 0.6
"""The share of a run's steps that u = 0.6 guides, where they are evenly spaced in t."""
EVERY, ENSEMBLE = Settings().every, Settings().ensemble
"""Sigmas a gradient, and noises of the reference."""
GOALS = ("step", "whole")
"""Fields of a floor that the project has a goal for."""


class Left(Exception):
    """The UNet was left after the feature block."""


@dataclass(frozen=True)
class Pass:
    """Operations of one pass."""

    forward: int
    backward: int = 0


@dataclass(frozen=True)
class Floor:
    """One way, in plain CFG steps. step: a guided step, in the mean over the guided window; whole: a run over a plain
    one at u = 0.6; reference: its features, paid once."""

    way: str
    step: float
    reference: float

    @property
    def whole(self) -> float:
        return 1 + GUIDED * (self.step - 1)


def meta_unet(shape: dict) -> UNetModel:
    """A UNet of this configuration without weights."""
    unet = UNetModel(**shape, dtype=torch.float16, device="meta", operations=disable_weight_init)
    return unet.requires_grad_(False)


def fused_attention(_own: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **_: object):
    """As kernels do it, [B, N, heads * C]: the way back computes the weights again, five products for two."""
    per_head = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    attended, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*per_head)
    return attended.transpose(1, 2).flatten(2)


def counted(unet: UNetModel, shape: dict, rows: int, side: int, leave: int | None = None) -> Pass:
    """A pass over so many rows of latents [4, side, side]; with an output block to leave after, there and back to the
    latent."""

    def leave_with(_module: object, _inputs: object, result: torch.Tensor) -> None:
        kept.append(result)
        raise Left

    def empty(*size: int, grad: bool = False) -> torch.Tensor:
        return torch.empty(size, dtype=torch.float16, device="meta", requires_grad=grad)

    kept: list[torch.Tensor] = []
    hook = None if leave is None else unet.output_blocks[leave][-1].register_forward_hook(leave_with)
    vector = empty(rows, shape["adm_in_channels"]) if shape["adm_in_channels"] else None
    latent, text = empty(rows, 4, side, side, grad=leave is not None), empty(rows, 77, shape["context_dim"])
    options = {"optimized_attention_override": fused_attention}
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        try:
            unet(latent, empty(rows), text, y=vector, transformer_options=options)
        except Left:
            pass
        finally:
            if hook:
                hook.remove()
        forward = counter.get_total_flops()
        if kept:
            kept[0].backward(torch.empty_like(kept[0]))
        return Pass(forward, counter.get_total_flops() - forward)


def floors(shape: dict, side: int, lower: int) -> list[Floor]:
    """The ways of bench overhead whose count does not depend on where the face is. lower: the lower feature block."""
    unet = meta_unet(shape)
    block = default_block(unet)
    plain = counted(unet, shape, 2, side).forward
    row = counted(unet, shape, 1, side).forward
    full = counted(unet, shape, 1, side, block)
    low = counted(unet, shape, 1, side, lower)
    half = counted(unet, shape, 1, side // 2, block)

    def floor(way: str, operations: float, features: Pass = full) -> Floor:
        return Floor(way, 1 + operations / plain, ENSEMBLE * features.forward / plain)

    there_and_back = full.forward + full.backward
    return [
        floor("RB-Guidance", there_and_back / EVERY),
        floor("RB-Guidance, in ComfyUI's own call", full.backward / EVERY),
        floor("every sigma", there_and_back),
        floor(f"every sigma, feature block {lower}", low.forward + low.backward, low),
        floor("every sigma, in ComfyUI's own call", full.backward),
        floor("every sigma, half resolution", half.forward + half.backward, half),
        floor("naive: whole forward and backward", row + full.backward, Pass(row)),
    ]


def page(cases: dict[str, tuple[dict, int, int]], verdict: Callable[[float, str], str]) -> list[str]:
    """Markdown: for each named case (shape, latent side, lower feature block) the ways with the goals they meet."""
    lines = []
    for name, (shape, side, lower) in cases.items():
        lines += [
            "",
            f"## {name}, {side}x{side} latent, by count",
            "",
            "| way | guided step / plain | whole run / plain | reference, plain steps |",
            "|---|---|---|---|",
        ]
        for floor in floors(shape, side, lower):
            step, whole = (f"{getattr(floor, goal):.2f} ({verdict(getattr(floor, goal), goal)})" for goal in GOALS)
            lines.append(f"| {floor.way} | {step} | {whole} | {floor.reference:.1f} |")
    return lines
