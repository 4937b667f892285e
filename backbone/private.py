"""A gradient through a network that ComfyUI has loaded, with nothing copied and nothing changed on the model.

Weights that nodes load are inference tensors, which autograd refuses to save. A view of the same storage made outside
inference mode is an ordinary tensor and costs no memory. The pass therefore runs on a private tree: shallow copies of
the modules whose parameters are such views. The loaded model is not touched even for the duration of the call (as
`torch.func.functional_call` would do), an exception leaves nothing to restore, and checkpointing may wrap the private
forwards.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from .checkpointing import checkpoint_forward
from .conditions import Conditions
from .family import Family
from .foreign import NEEDS
from .saved import Copies
from .tensors import map_tensors

CHANGED = (
    "This ComfyUI casts the weights of its layers in a way that RB-Guidance does not know, so it cannot take a "
    "gradient through the model; update the pack, or use a ComfyUI that its README names."
)


class _Left(Exception):
    """The network was left after the feature block."""


class _Tap(torch.nn.Module):
    """A last layer of the feature block that keeps what it is given: the rest of the network is not needed, or
    (`go_on`) needs no gradient."""

    def __init__(self, go_on: bool) -> None:
        super().__init__()
        self._go_on = go_on
        self.features: torch.Tensor | None = None

    def forward(self, h: torch.Tensor, *_: object) -> torch.Tensor:
        self.features = h
        if not self._go_on:
            raise _Left
        torch.set_grad_enabled(False)  # for the rest of the call; PrivateTwin._call puts it back
        return h.detach()


class Tapped(NamedTuple):
    """features: [B, C, h, w] of the feature block. denoised: [B, C, H, W] without gradient where the pass went on."""

    features: torch.Tensor
    denoised: torch.Tensor | None


def storage_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as an ordinary tensor without gradient. Call outside inference mode."""
    if not tensor.is_inference():
        return tensor.detach()
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _own_view(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Views for plain tensors; quantised subclasses keep their own class, whose operations dequantise."""
    return tensor if tensor is None or _subclass(tensor) else storage_view(tensor)


def _subclass(tensor: torch.Tensor) -> bool:
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter)


def private_tree(
    module: torch.nn.Module, wrap: Callable[[torch.nn.Module], None], memo: dict | None = None
) -> torch.nn.Module:
    """Shallow copy of a module tree over views of its weights; `wrap` sees each copy. Takes milliseconds for SDXL's
    2,000 modules."""
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    twin = memo[id(module)] = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_parameters"] = {name: _own_view(p) for name, p in module._parameters.items()}
    twin.__dict__["_buffers"] = {name: _own_view(b) for name, b in module._buffers.items()}
    twin.__dict__["_modules"] = {name: m and private_tree(m, wrap, memo) for name, m in module._modules.items()}
    twin.__dict__.pop("_compiled_call_impl", None)  # torch.nn.Module.compile's, bound to the loaded module
    forward = module.__dict__.get("forward")
    if isinstance(forward, types.MethodType) and forward.__self__ is module:
        twin.__dict__["forward"] = types.MethodType(forward.__func__, twin)  # another pack's patch, now on the copy
    wrap(twin)
    return twin


def _plain_product(module: torch.nn.Module) -> None:
    """ComfyUI's fast matrix products (fp8, scaled fp8, cuBLAS) have no backward: make the copy of such a layer one of
    ComfyUI's that casts its weight, here also scales it, and multiplies. Raises: ValueError, a sentence for the user,
    where a core has other layers."""
    import comfy.ops

    kind = type(module)
    if kind.__module__ != comfy.ops.__name__:
        return
    try:
        ordinary, casting = comfy.ops.disable_weight_init.Linear, comfy.ops.manual_cast.Linear
        if not issubclass(kind, ordinary) or kind is ordinary:
            return
        module.__class__ = casting
        scale = getattr(module, "scale_weight", None)
        if scale is not None:
            module.__dict__["weight_function"] = [*module.weight_function, lambda weight: weight * scale.to(weight)]
    except (AttributeError, TypeError) as error:
        raise ValueError(CHANGED) from error


def _own_casts(module: torch.nn.Module, device: torch.device, own_copy: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Newer cores cast offloaded weights into one buffer that the next layer overwrites, but autograd keeps what it
    saw: end each such cast with a copy of its own. Raises: ValueError, a sentence for the user, where a core casts
    otherwise."""
    weight = module._parameters.get("weight")
    casts = hasattr(module, "weight_function") or hasattr(module, "comfy_cast_weights")
    if casts and weight is not None and weight.device != device and not _subclass(weight):
        for name in ("weight_function", "bias_function"):
            functions = getattr(module, name, None)
            if not isinstance(functions, list):
                raise ValueError(CHANGED)
            module.__dict__[name] = [*functions, own_copy]


def _copier(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """torch.clone for casts that ComfyUI makes on a stream of its own: the copy's memory belongs to that stream, and
    without a word from us would be given away while the main stream's way back is still to read it."""
    if device.type not in ("cuda", "xpu"):
        return torch.clone
    main = getattr(torch, device.type).current_stream(device)

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.clone()
        own.record_stream(main)
        return own

    return copy


class PlainTensors(TorchFunctionMode):
    """Lets foreign inference tensors (another pack's attention patch) take part in autograd, one view a call.

    Costs some 40 microseconds an operation, so it is switched on only after a pass has failed without it.
    """

    def __torch_function__(
        self, func: Callable, types_: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        def plain(value: object) -> object:
            if isinstance(value, torch.Tensor) and not _subclass(value) and value.is_inference():
                return storage_view(value)
            if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
                return type(value)(plain(each) for each in value)
            return value

        with torch._C.DisableTorchFunctionSubclass():
            return func(*(plain(arg) for arg in args), **{name: plain(arg) for name, arg in (kwargs or {}).items()})


class PrivateTwin:
    """A twin of one loaded model, ready to be run with gradients. Lives for one sampling run; `close` it.

    device: where it computes. conditions: how it is run. Make it outside inference mode. Its passes are given what
    ComfyUI gives apply_model, and called outside inference mode: x [B, C, H, W] noisy at sigma [B], arguments
    (c_crossattn, c_concat, control, y, …), transformer_options.
    """

    def __init__(self, family: Family, device: torch.device, conditions: Conditions | None = None) -> None:
        conditions = conditions or Conditions()
        self.family = family
        self._plain = conditions.plain
        self._copies = Copies(family.net) if conditions.copying else None
        own_copy = _copier(device)

        def wrap(module: torch.nn.Module) -> None:
            _plain_product(module)
            _own_casts(module, device, own_copy)
            if conditions.checkpointing and type(module).__name__ in family.recomputed:
                checkpoint_forward(module, self.guard, self._copies)

        base = family.base
        self.net = private_tree(family.net, wrap)
        self.base = base.__class__.__new__(base.__class__)
        self.base.__dict__.update(base.__dict__)
        self.base.__dict__["_modules"] = {**base._modules, "diffusion_model": self.net}

    def tap(
        self,
        block: int,
        x: torch.Tensor,
        sigma: torch.Tensor,
        arguments: dict,
        transformer_options: dict,
        go_on: bool = False,
    ) -> Tapped:
        """The features of a block, which ends the pass. go_on: only the gradient ends there, and the pass gives the
        prediction too."""
        layers, tap, denoised = self.family.layers_of(self.net, block), _Tap(go_on), None
        layers["tap"] = tap
        try:
            denoised = self._call(x, sigma, arguments, transformer_options)
        except _Left:
            pass
        finally:
            features, tap.features = tap.features, None  # memory may have run out after it: activations hang on it
            del layers["tap"]
        if features is None:
            raise RuntimeError("The UNet ended without passing its feature block.")
        return Tapped(features, denoised)

    def whole(self, x: torch.Tensor, sigma: torch.Tensor, arguments: dict, transformer_options: dict) -> torch.Tensor:
        """[B, C, H, W] denoised, with gradients all the way."""
        return self._call(x, sigma, arguments, transformer_options)

    def guard(self) -> contextlib.AbstractContextManager:
        """Context in which to take the gradient of a pass."""
        return PlainTensors() if self._plain else contextlib.nullcontext()

    def explain(self, error: RuntimeError) -> None:
        """Raises: ValueError in one sentence for the user where autograd says that something has no gradient."""
        text = str(error)
        if "no autograd formula" in text:
            raise ValueError(
                f"{NEEDS} attention patch has none in this ComfyUI; start it without --use-flash-attention or "
                "--use-ck-attention, or bypass that node."
            ) from error
        quantised = next((type(p).__name__ for p in self.net.parameters() if _subclass(p)), None)
        words = ("derivative", "require grad", "requires grad", "not implemented")
        if quantised is not None and any(each in text for each in words):
            raise ValueError(
                f"RB-Guidance needs a gradient through the model, and its {quantised} weights have none; load the "
                "model in fp16, bf16 or plain fp8 instead."
            ) from error

    def close(self) -> None:
        """Let go of the weights at once: views keep their memory when ComfyUI unloads the model, and the patched
        forwards lead back to their modules, so Python would only find them at its next collection."""
        for module in self.net.modules():
            module._parameters.clear()
            module._buffers.clear()
            module.__dict__.pop("forward", None)

    def _call(self, x: torch.Tensor, sigma: torch.Tensor, arguments: dict, transformer_options: dict) -> torch.Tensor:
        arguments = map_tensors(arguments, _fresh)
        saving = self._copies.saving() if self._copies else contextlib.nullcontext()
        with self.guard(), saving, torch.set_grad_enabled(torch.is_grad_enabled()):
            return self.base._apply_model(x, sigma, transformer_options=transformer_options, **arguments)


def _fresh(tensor: torch.Tensor) -> torch.Tensor:
    """A conditioning's tensor as autograd accepts it."""
    return tensor.clone() if tensor.is_inference() else tensor
