"""Small models of SD1.5's and SDXL's shapes with random weights, made as ComfyUI makes the real ones."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import torch

from ...backbone.conditions import Conditions
from ...backbone.private import PrivateTwin
from ...backbone.unet import UNetFamily
from ...models.faces import FaceReference
from ...sampling.record import RECORDS_KEY, IdentityRecord
from ...training.random_weights import NARROW, UNETS

TOKENS = 77
STEPS = 3
"""Of which the last two are in the default window."""

SD15, SDXL = NARROW["sd15"], NARROW["sdxl"]
SD15_FULL, SDXL_FULL = UNETS["sd15"], UNETS["sdxl"]
SD20 = SD15 | dict(
    model_channels=64, num_heads=-1, num_head_channels=64, context_dim=1024, use_linear_in_transformer=True
)

V_PREDICTION = {
    "v_pred": torch.tensor([]),
    "output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0]),
}
"""What ComfyUI looks for in a checkpoint to tell a v-prediction model: SDXL's key and SD2's broad bias."""


class Windows:
    """Random numbers of a given deviation, of which only few are drawn: each tensor is another window on them."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.drawn, self.count = generator, {}, 0

    def __call__(self, shape: torch.Size, deviation: float) -> torch.Tensor:
        size = shape.numel()
        if 2 * size > len(self.drawn.get(deviation, ())):
            self.drawn[deviation] = torch.randn(2 * size, generator=self.generator) * deviation
        self.count += 1
        start = 7919 * self.count % size  # a prime, so that no two windows are alike
        return self.drawn[deviation][start : start + size].view(shape)


def unet(
    config_class,
    shape: dict,
    seed: int = 0,
    dtype=torch.float32,
    manual_cast=None,
    inference: bool = True,
    v_prediction=False,
    operations=None,
    windows=False,
):
    """A ModelPatcher; weights are inference tensors unless `inference` is False. operations: the layers' classes, where
    ComfyUI is not to pick them. windows: weights are windows on few random numbers, so that a model of full size is
    made in seconds and takes little memory."""
    with torch.inference_mode(inference):
        config = config_class(dict(shape, dtype=dtype))
        config.custom_operations = operations
        config.set_inference_dtype(dtype, manual_cast)
        state = V_PREDICTION if v_prediction else {}
        base = config.get_model(state, "", device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(seed)
        drawn = Windows(generator)
        for name, p in base.diffusion_model.named_parameters():
            scale = 0.02 if p.ndim < 2 else 1.0 / max(p[0].numel(), 1) ** 0.5
            values = drawn(p.shape, scale) if windows else torch.randn(p.shape, generator=generator) * scale
            if p.ndim == 1 and name.endswith("weight"):
                values = values + 1
            p.data = values.to(dtype)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=torch.device("cpu"))


def sd15(**options):
    return unet(comfy.supported_models.SD15, SD15, **options)


def sdxl(**options):
    return unet(comfy.supported_models.SDXL, SDXL, **options)


def sd20(**options):
    return unet(comfy.supported_models.SD20, SD20, **options)


def vae(channels: int = 4):
    """ComfyUI's VAE around a random TAESD; f8. ComfyUI's layers come without values, so all are given here."""
    state = comfy.taesd.taesd.TAESD(latent_channels=channels).state_dict()
    generator = torch.Generator().manual_seed(7)
    for name, value in state.items():
        if value.ndim > 1:
            state[name] = torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5
        elif not name.startswith("vae_"):
            state[name] = torch.zeros_like(value)
    return comfy.sd.VAE(sd=state)


def twin(model, device: str = "cpu", **conditions) -> PrivateTwin:
    """A private twin of a model."""
    return PrivateTwin(UNetFamily(model.model), torch.device(device), Conditions(**conditions))


def width(model) -> int:
    """Width of the text rows that the model reads."""
    return model.model.model_config.unet_config["context_dim"]


def lora(model, seed: int = 0, rank: int = 4, scale: float = 0.1) -> dict[str, torch.Tensor]:
    """A LoRA file's content over every attention projection and residual convolution, named as trainers name them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    with torch.inference_mode():
        for name, p in model.model.diffusion_model.named_parameters():
            stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight")):
                down = torch.randn(rank, p.shape[1], generator=generator) * scale / p.shape[1] ** 0.5
            elif name.endswith("in_layers.2.weight"):
                down = torch.randn(rank, *p.shape[1:], generator=generator) * scale / p[0].numel() ** 0.5
            else:
                continue
            up = torch.randn(p.shape[0], rank, *[1] * (p.ndim - 2), generator=generator)
            state |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
    return state


def conditioning(model, seed: int, tokens: int = TOKENS) -> list:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 1280 if width(model) == 2048 else 768, generator=generator)
    return [[torch.randn(1, tokens, width(model), generator=generator), {"pooled_output": pooled}]]


def face(seed: int = 0, mask: bool = True) -> FaceReference:
    generator = torch.Generator().manual_seed(100 + seed)
    crop = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=generator), size=(128, 128), mode="bicubic")
    oval = torch.zeros(1, 128, 128)
    oval[:, 32:100, 40:90] = 1
    return FaceReference(crop.clamp(0, 1).movedim(1, -1).contiguous(), oval if mask else None, (0, 0, 128, 128), "test")


def record(model, token: int = 5, seed: int = 0, region=None, mask: bool = True) -> IdentityRecord:
    reference = conditioning(model, 50 + seed)
    return IdentityRecord("a woman", "woman", 0, token, TOKENS, face(seed, mask), region, reference, 5)


def annotated(model, seed: int = 1, **options) -> list:
    """A conditioning that carries one person."""
    tensor, values = conditioning(model, seed)[0]
    return [[tensor, values | {RECORDS_KEY: (record(model, **options),)}]]


def sample(
    model,
    positive,
    *,
    negative=None,
    seed: int = 3,
    steps: int = STEPS,
    cfg: float = 7.5,
    sampler: str = "euler",
    scheduler: str = "normal",
    latent=None,
    noise=None,
    size=(16, 16),
    batch: int = 1,
    **options,
) -> torch.Tensor:
    """What KSampler does, under inference mode as in a node."""
    with torch.inference_mode():
        latent = torch.zeros(batch, 4, *size) if latent is None else latent
        negative = conditioning(model, 2) if negative is None else negative
        noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            latent,
            seed=seed,
            disable_pbar=True,
            **options,
        )
