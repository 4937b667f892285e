"""What autograd keeps where a patch writes in place, and blocks that are computed again."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch
from omniportrait.backbone.checkpointing import checkpoint_forward
from omniportrait.backbone.saved import Copies, overwritten


class ResBlock(torch.nn.Module):
    """Named as a block that is computed again. patch: of the tensor in its middle."""

    def __init__(self, patch=lambda h: h):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.patch, self.runs, self.products = patch, 0, 0
        self.weight = torch.nn.Parameter(torch.randn(6, 6, generator=generator), requires_grad=False)

    def product(self, h):
        product = torch.nn.functional.linear(h, self.weight)
        self.products += 1
        return product

    def forward(self, x, scale, transformer_options=None):
        self.runs += 1
        h = self.patch((self.product(x) * scale).sin())
        return x + self.product(h.tanh())


def scaled(h):
    """FreeU's way, with a new tensor."""
    return torch.cat([h[:, :3] * (1 + h.mean(dim=1, keepdim=True)), h[:, 3:]], dim=1)


def scaled_in_place(h):
    h[:, :3] = h[:, :3] * (1 + h.mean(dim=1, keepdim=True))
    return h


def three(patch=lambda h: h, copying=False, checkpointing=True, guard=contextlib.nullcontext):
    blocks = [ResBlock(patch) for _ in range(3)]
    copies = Copies(torch.nn.ModuleList(blocks)) if copying else None
    if checkpointing:
        for block in blocks:
            checkpoint_forward(block, guard, copies)
    return blocks, copies


def gradient(blocks, copies=None, between=lambda x: x):
    """Of a scalar by x and by the scale that all blocks share. between: a patch between blocks."""
    x = torch.linspace(-1, 1, 12).reshape(2, 6).requires_grad_(True)
    scale = torch.tensor(0.7, requires_grad=True)
    with copies.saving() if copies else contextlib.nullcontext():
        h = x * 1
        for block in blocks:
            h = between(block(h, scale=scale))
        energy = h.square().sum()
    by_x, by_scale = torch.autograd.grad(energy, (x, scale))
    return torch.cat([by_x.flatten(), by_scale[None]])


def test_weights_are_not_copied_and_the_rest_is():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    copies = Copies(module)
    for own in (module[0].weight, module[0].weight.T, module[0].weight[1:], module[1].running_mean):
        assert copies(own).data_ptr() == own.data_ptr()
    other = torch.randn(3, 3, requires_grad=True).exp()
    copy = copies(other)
    assert copy.data_ptr() != other.data_ptr() and torch.equal(copy, other) and not copy.requires_grad


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("where", ["inside", "between"])
def test_writing_in_place_is_noticed_and_with_copies_no_harm(where, checkpointing):
    """The same function with nothing overwritten is what it must equal; torch.utils.checkpoint gave another gradient
    without a word."""

    def found(patch, copying=False):
        inside, between = (patch, lambda h: h) if where == "inside" else (lambda h: h, patch)
        return gradient(*three(inside, copying, checkpointing), between)

    expected = found(scaled)
    assert not torch.allclose(expected, found(lambda h: h))
    with pytest.raises(RuntimeError) as caught:
        found(scaled_in_place)
    assert overwritten(caught.value)
    for _ in range(20):  # memory is used again all the time
        torch.testing.assert_close(found(scaled_in_place, copying=True), expected)


@pytest.mark.parametrize("copying", [False, True])
def test_blocks_computed_again_give_the_same_bits(copying):
    assert torch.equal(gradient(*three(copying=copying)), gradient(*three(checkpointing=False)))


def test_a_patch_may_take_a_gradient_of_its_own():
    def uphill(h):
        with torch.enable_grad():
            own = h.detach().requires_grad_()
            (step,) = torch.autograd.grad(own.sin().square().sum(), own)
        return h * step

    assert torch.equal(gradient(*three(uphill)), gradient(*three(uphill, checkpointing=False)))


def test_a_block_may_write_into_its_input():
    class Greedy(ResBlock):
        def forward(self, x, scale):
            y = x.sin() * scale
            return y * x.mul_(2)

    Greedy.__name__ = "ResBlock"
    found = {}
    for checkpointing in (False, True):
        block = Greedy()
        copies = Copies(block)
        if checkpointing:
            checkpoint_forward(block, contextlib.nullcontext, copies)
        found[checkpointing] = gradient([block, block], copies)
    assert torch.equal(found[True], found[False])
    block = Greedy()
    checkpoint_forward(block, contextlib.nullcontext, None)
    with pytest.raises(RuntimeError, match="The input of a checkpointed block") as caught:
        gradient([block])
    assert overwritten(caught.value)


def middles_of_a_pass(copying, checkpointing):
    """(alive before the way back, computed again on it, alive after it), of what is made in the middle of blocks."""
    middles = []

    def watch(h):
        h = h * 1
        middles.append(weakref.ref(h))
        return h.sin()  # which keeps h

    def alive():
        return sum(middle() is not None for middle in middles)

    blocks, copies = three(watch, copying, checkpointing)
    gc.disable()  # nothing may wait for the collector
    try:
        x, scale = torch.ones(2, 6, requires_grad=True), torch.tensor(0.7)
        with copies.saving() if copies else contextlib.nullcontext():
            h = blocks[2](blocks[1](blocks[0](x, scale), scale), scale)
        before = alive()
        torch.autograd.grad(h.sum(), x)
        del h
        return before, len(middles) - 3, alive()
    finally:
        gc.enable()


def test_only_inputs_are_kept():
    assert middles_of_a_pass(copying=False, checkpointing=False) == (3, 0, 0)
    assert middles_of_a_pass(copying=False, checkpointing=True) == (0, 3, 0)
    assert middles_of_a_pass(copying=True, checkpointing=True) == (0, 3, 0)


def test_a_block_is_left_once_all_is_there():
    """The last product of the three is not computed again; a second way back computes once more."""
    blocks, _ = three()
    x = torch.ones(2, 6, requires_grad=True)
    h = blocks[0](x, torch.tensor(0.7))
    first = torch.autograd.grad(h.sum(), x, retain_graph=True)[0]
    assert blocks[0].runs == 2 and blocks[0].products == 3
    second = torch.autograd.grad(h.sum(), x)[0]
    assert blocks[0].runs == 3 and torch.equal(first, second)


def test_nothing_is_kept_without_a_gradient():
    blocks, _ = three()
    with torch.no_grad():
        h = blocks[0](torch.ones(2, 6, requires_grad=True), torch.tensor(0.7))
    assert not h.requires_grad and blocks[0].runs == 1


@pytest.mark.parametrize("other", [lambda h: h, lambda h: h * h.sum(), lambda h: h[:1] * h[:1].sum() * h])
def test_a_block_that_does_not_do_the_same_again_is_an_error(other):
    patches = iter([lambda h: h * h.mean(dim=1, keepdim=True)])
    blocks, _ = three(lambda h: next(patches, other)(h))
    x = torch.ones(2, 6, requires_grad=True)
    h = blocks[0](x, torch.tensor(0.7))
    with pytest.raises(RuntimeError, match="did not do the same again"):
        torch.autograd.grad(h.sum(), x)


def test_options_are_seen_as_they_were():
    """The UNet writes the number of the block at hand into one dictionary."""
    seen, options = [], {"block": 1}

    class Looking(ResBlock):
        def forward(self, x, transformer_options):
            seen.append(transformer_options["block"])
            return x.sin() * transformer_options["block"]

    Looking.__name__ = "ResBlock"
    block = Looking()
    checkpoint_forward(block, contextlib.nullcontext, None)
    x = torch.ones(2, requires_grad=True)
    h = block(x, transformer_options=options)
    options["block"] = 9
    torch.autograd.grad(h.sum(), x)
    assert seen == [1, 1]


def test_the_guard_is_on_again_and_autocast_as_it_was():
    states = []

    @contextlib.contextmanager
    def guard():
        states.append("guard")
        yield

    def look(h):
        states.append(h.dtype)
        return h

    blocks, _ = three(look, guard=guard)
    x = torch.ones(2, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        h = blocks[0](x, torch.tensor(0.7))
    torch.autograd.grad(h.float().sum(), x)
    assert states == [torch.bfloat16, "guard", torch.bfloat16]
    h = blocks[0](x, torch.tensor(0.7))
    states.clear()
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.grad(h.sum(), x)
    assert states == ["guard", torch.float32]
