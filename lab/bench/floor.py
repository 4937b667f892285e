"""The floor under a guided step at the sizes that people use: the floating-point operations of a UNet's forward and
backward and the memory that they hold, counted on tensors that have a shape and no data. Seconds on any machine.

Counted are the passes alone: what compares the features with the reference's comes on top.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ops import disable_weight_init
from torch.utils.flop_counter import FlopCounterMode

from ...backbone.attention import BlockKey
from ...backbone.checkpointing import checkpoint_forward
from ...backbone.unet import UNetFamily
from ...guidance.omniportrait.settings import Settings
from ...guidance.reference_attention.settings import Settings as SeenSettings
from ...models.ic.nets import Appearance, Shape
from .contenders import ON_CPU
from .live import LiveMemory

GUIDED, SEEN = 0.6, SeenSettings().end_percent - SeenSettings().start_percent
"""The share of a run's steps that u = 0.6 guides, where they are evenly spaced in t, and that see the reference by
Reference Attention's own window."""
EVERY, ENSEMBLE = Settings().every, Settings().ensemble
"""Sigmas a gradient, and noises of the reference."""
GOALS = {"step": ".2f", "whole": ".2f", "memory": "+.0f"}
"""Fields of a floor that the project has a goal for, and how they are told."""
WIDE = "IC-Portrait"
"""As its node has it: the flow is found once a run."""
HEAD = 0.23
"""The share of a reference's tokens that Reference Attention appends, the mean of twelve rendered photographs."""


class Left(Exception):
    """The UNet was left after the feature block."""


@dataclass(frozen=True)
class Pass:
    """Operations of one pass; bytes that it holds for the way back, and at its highest."""

    forward: int
    backward: int
    held: int
    peak: int

    @property
    def both(self) -> int:
        return self.forward + self.backward


@dataclass(frozen=True)
class Floor:
    """One way, in plain CFG steps. step: a guided step, in the mean over the guided window; whole: a run over a plain
    one at u = 0.6; reference: its features, paid once; memory: MiB of activations at the highest, over plain's. goal:
    the step's, where the way is not RB-Guidance but Reference Attention."""

    way: str
    step: float
    reference: float
    memory: float
    goal: str = ""

    @property
    def whole(self) -> float:
        return 1 + (SEEN if self.goal else GUIDED) * (self.step - 1)

    def told(self, verdict: Callable[[float, str], str]) -> list[str]:
        """Its cells, with the goals it meets."""
        values = {goal: f"{getattr(self, goal):{form}}" for goal, form in GOALS.items()}
        if self.goal:
            return [f"{values['step']} ({verdict(self.step, self.goal)})", values["whole"], values["memory"], ""]
        cells = [f"{value} ({verdict(getattr(self, goal), goal)})" for goal, value in values.items()]
        return [*cells, f"{self.reference:.1f}"]


def meta_unet(shape: dict, checkpointing: bool = False) -> UNetModel:
    """A UNet of this configuration without weights, in half precision."""
    unet = UNetModel(**shape, dtype=torch.float16, device="meta", operations=disable_weight_init).requires_grad_(False)
    if checkpointing:
        for module in unet.modules():
            if type(module).__name__ in UNetFamily.recomputed:
                checkpoint_forward(module, contextlib.nullcontext, None)
    return unet


def family_of(unet: UNetModel) -> UNetFamily:
    """The facts of a UNet alone."""
    return UNetFamily(SimpleNamespace(diffusion_model=unet))


def fused_attention(_own: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **_: object):
    """As kernels do it, [B, N, heads * C]: the way back computes the weights again, five products for two."""
    per_head = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    attended, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*per_head)
    return attended.transpose(1, 2).flatten(2)


def finest(unet: UNetModel) -> list[BlockKey]:
    """The blocks at which Reference Attention reads and appends, in the order in which they run."""
    return [key for key in family_of(unet).self_attention(1) if key[0] != "middle"]


def reading(unet: UNetModel) -> dict:
    """transformer_options that leave the UNet where Reference Attention has read all of a reference's tokens."""
    last = finest(unet)[-1]

    def read(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
        if (*extra["block"], extra["block_index"]) == last:
            raise Left
        return n, context, value

    return {"patches": {"attn1_patch": [read]}}


def appending(unet: UNetModel, tokens: int) -> dict:
    """transformer_options that let the last row see so many tokens more, as Reference Attention does: the keys of all
    rows are made, and the last row uses them."""
    blocks = finest(unet)

    def append(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
        if (*extra["block"], extra["block_index"]) not in blocks:
            return n, context, value
        longer = torch.cat([context, context.new_empty(len(n), tokens, n.shape[2])], 1)
        return n, longer, longer

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> torch.Tensor:
        own = q.shape[1]
        others = fused_attention(None, q[:-1], k[:-1, :own], v[:-1, :own], extra["n_heads"])
        return torch.cat([others, fused_attention(None, q[-1:], k[-1:], v[-1:], extra["n_heads"])])

    return {"patches": {"attn1_patch": [append]}, "patches_replace": {"attn1": dict.fromkeys(blocks, attend)}}


def run_pass(
    unet: UNetModel,
    shape: dict,
    rows: int,
    side: int,
    block: int | None = None,
    leave: bool = True,
    halfway: Callable[[], None] = lambda: None,
    options: dict | None = None,
    wide: int = 1,
) -> None:
    """A pass over so many rows of latents [4, side, wide * side]; with a feature block, there and back to the latent,
    and `halfway` is called in between. leave: the UNet after that block. options: more transformer_options."""

    def keep(_module: object, _inputs: object, result: torch.Tensor) -> None:
        kept.append(result)
        if leave:
            raise Left

    def empty(*size: int, grad: bool = False) -> torch.Tensor:
        return torch.empty(size, dtype=torch.float16, device="meta", requires_grad=grad)

    kept: list[torch.Tensor] = []
    hook = None if block is None else unet.output_blocks[block][-1].register_forward_hook(keep)
    vector = empty(rows, shape["adm_in_channels"]) if shape["adm_in_channels"] else None
    latent, text = empty(rows, 4, side, wide * side, grad=block is not None), empty(rows, 77, shape["context_dim"])
    options = {"optimized_attention_override": fused_attention, **(options or {})}
    try:
        unet(latent, empty(rows), text, y=vector, transformer_options=options)
    except Left:
        pass
    finally:
        if hook:
            hook.remove()
    halfway()
    if kept:
        kept[0].backward(torch.empty_like(kept[0]))


def counted(*what: object, **how: object) -> Pass:
    """`run_pass` by count; twice, for the counter of operations keeps tensors alive."""
    forward, held = [], []
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        run_pass(*what, **how, halfway=lambda: forward.append(counter.get_total_flops()))
    with LiveMemory() as memory:
        run_pass(*what, **how, halfway=lambda: held.append(memory.now))
    return Pass(forward[0], counter.get_total_flops() - forward[0], held[0], memory.peak)


def floors(shape: dict, side: int, lower: int, head: float = HEAD) -> list[Floor]:
    """The ways of bench overhead whose count does not depend on where the face is. lower: the lower feature block."""
    unet = meta_unet(shape)
    block = family_of(unet).feature_block()
    plain = counted(unet, shape, 2, side)
    row = counted(unet, shape, 1, side)
    full = counted(unet, shape, 1, side, block)
    low = counted(unet, shape, 1, side, lower)
    whole = counted(unet, shape, 1, side, block, leave=False)
    spare = counted(meta_unet(shape, checkpointing=True), shape, 1, side, block)

    down = min(site.down for site in family_of(unet).transformer_sites(len(unet.output_blocks) - 1))
    seeing = counted(unet, shape, 2, side, options=appending(unet, round(head * (side // down) ** 2)))
    read = counted(unet, shape, 1, side, options=reading(unet))

    def floor(way: str, operations: float, reference: Pass = full, peak: int = full.peak, goal: str = "") -> Floor:
        memory = max(peak - plain.peak, 0) / 2**20
        ahead = 0.0 if goal else ENSEMBLE * reference.forward / plain.forward
        return Floor(way, 1 + operations / plain.forward, ahead, memory, goal)

    def shared(way: str, own: Pass, every: int = 1) -> Floor:
        """What is kept for the way back stays while the other rows go their way."""
        return floor(way, own.backward / every, peak=max(own.held + row.peak, own.peak))

    return [
        floor("RB-Guidance", full.both / EVERY),
        floor("RB-Guidance, checkpointing", spare.both / EVERY, peak=spare.peak),
        shared("RB-Guidance, in ComfyUI's own call", full, EVERY),
        shared("RB-Guidance, in ComfyUI's own call, checkpointing", spare, EVERY),
        floor("every sigma", full.both),
        floor("every sigma, checkpointing", spare.both, peak=spare.peak),
        floor(f"every sigma, feature block {lower}", low.both, low, low.peak),
        shared("every sigma, in ComfyUI's own call", full),
        floor("naive: whole forward and backward", whole.both, row, whole.peak),
        floor("Reference Attention", seeing.forward - plain.forward + read.forward, peak=seeing.peak, goal="attention"),
        floor("Reference Attention, cached", seeing.forward - plain.forward, peak=seeing.peak, goal="cached"),
    ]


def net_flops(shape: dict, rows: int, side: int) -> int:
    """Operations of IC-Portrait's appearance net, as wide as both pictures."""
    net = Appearance(Shape.of(shape), disable_weight_init, dtype=torch.float16, device="meta").requires_grad_(False)
    empty = partial(torch.empty, dtype=torch.float16, device="meta")
    condition, text = empty(rows, shape["in_channels"], side, 2 * side), empty(rows, 77, shape["context_dim"])
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        net.residuals(net(condition, empty(rows), text, {"optimized_attention_override": fused_attention}))
    return counter.get_total_flops()


def wide_floors(shape: dict, side: int) -> dict[str, float]:
    """What a step with IC-Portrait takes, in plain CFG steps, by way. Both of its nets take alike."""
    unet = meta_unet(shape)
    plain, wide = (counted(unet, shape, 2, side, wide=sides).forward for sides in (1, 2))
    net = net_flops(shape, 2, side)
    return {
        WIDE: (wide + net) / plain,
        "as printed, the matching net in each step": (wide + 2 * net) / plain,
        "the nets' part made once a run": wide / plain,
        "in-context LoRA, no nets": wide / plain,
    }


def wide_page(name: str, shape: dict, side: int, verdict: Callable[[float], str]) -> list[str]:
    """Markdown of `wide_floors`."""
    lines = ["", f"## IC-Portrait, {name}, {side}x{side} latent, by count", "", "| way | step / plain |", "|---|---|"]
    for way, step in wide_floors(shape, side).items():
        lines.append(f"| {way} | {step:.2f}{f' ({verdict(step)})' if way == WIDE else ''} |")
    return lines


def page(cases: dict[str, tuple[dict, int, int]], verdict: Callable[[float, str], str]) -> list[str]:
    """Markdown: for each named case (shape, latent side, lower feature block) the ways with the goals they meet."""
    lines = []
    for name, (shape, side, lower) in cases.items():
        lines += [
            "",
            f"## {name}, {side}x{side} latent, by count",
            "",
            "| way | guided step / plain | whole run / plain | memory over plain, MiB | reference, plain steps |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join([floor.way, *floor.told(verdict)])} |" for floor in floors(shape, side, lower)]
    return lines
