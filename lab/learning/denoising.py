"""Training the demo's diffusion model: ComfyUI's own UNet and the text encoder together, eps prediction on SD1.5's
schedule, in the latents of a trained autoencoder."""

from __future__ import annotations

import argparse
from pathlib import Path

import comfy.model_sampling
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_basic, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from ...demo.architecture import MARK, PREVIEW, TEXT, UNET, mark
from ...demo.autoencoder import INSIDE, PortraitAutoencoder, under
from ...training.files import halved, write_tensors
from ...training.loop import Average, descend, learning_rate
from . import loop
from .examples import Examples, cached_latents, cached_weights, of_file, preview_colours, stamps
from .loop import Budget, budget_of
from .pictures import Pictures
from .text import TextModel, tokenize

SNR_LIMIT = 5.0
"""min-SNR weighting (arXiv 2303.09556): no noise level counts more than this in the picture's own units."""


def plain_attention(_, q, *args, **options):
    """ComfyUI's own pick may have no backward, and torch's takes two to four times as long for so few tokens (256) on a
    CPU in bfloat16."""
    return (attention_pytorch if q.is_cuda else attention_basic)(q, *args, **options)


PLAIN_ATTENTION = {"optimized_attention_override": plain_attention}


class Denoiser(nn.Module):
    """The UNet and the text encoder that trains with it."""

    def __init__(self, ids: torch.Tensor):
        super().__init__()
        self.unet = initialise(UNetModel(**UNET, device="cpu", operations=comfy.ops.disable_weight_init))
        self.text = TextModel(ids)
        sigmas = comfy.model_sampling.ModelSamplingDiscrete().sigmas
        self.register_buffer("sigmas", sigmas, persistent=False)

    def predict(self, noisy: torch.Tensor, steps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """The noise in `noisy` [B, 4, h, w] (variance-preserving) at steps [B] of 1000, given text states."""
        return self.unet(noisy, steps, context=states, transformer_options=PLAIN_ATTENTION)

    def loss(
        self,
        latents: torch.Tensor,
        weights: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        tokens: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The loss to descend, weighted by noise level and by place (`weights` [h, w]), and the `plain` one."""
        sigma = self.sigmas[steps].view(-1, 1, 1, 1)
        noisy = (latents + sigma * noise) / (1 + sigma**2).sqrt()
        with loop.mixed(latents.device):
            predicted = self.predict(noisy, steps, self.text(tokens))
        error = (predicted.float() - noise).square().mean(1)
        weight = (SNR_LIMIT * self.sigmas[steps] ** 2).clamp(max=1.0).view(-1, 1, 1)  # min(snr, limit) / snr
        return {"total": (weight * weights * error).mean(), "plain": error.mean()}

    @torch.no_grad()
    def sample(self, tokens: torch.Tensor, empty: torch.Tensor, noise: torch.Tensor, cfg: float = 4.0, count: int = 20):
        """Latents [B, 4, h, w] by Euler steps (DDIM) from unit noise; `tokens` [B, 77], `empty` [77]."""
        steps = torch.linspace(len(self.sigmas) - 1, 0, count, device=noise.device).round().long()
        sigmas = torch.cat((self.sigmas[steps], self.sigmas.new_zeros(1)))
        with loop.mixed(noise.device):
            states = self.text(torch.cat((tokens, empty.expand_as(tokens))))
        x = noise * (1 + sigmas[0] ** 2).sqrt()
        for step, sigma, following in zip(steps, sigmas, sigmas[1:], strict=False):
            noisy = (x / (1 + sigma**2).sqrt()).repeat(2, 1, 1, 1)
            with loop.mixed(noise.device):
                wanted, plain = self.predict(noisy, step.expand(len(noisy)), states).float().chunk(2)
            x = x + (following - sigma) * (plain + cfg * (wanted - plain))
        return x


def initialise(unet: UNetModel) -> UNetModel:
    """torch's own starting values, which ComfyUI's layers leave out; what ends a residual branch starts at zero."""
    for layer in unet.modules():
        for kind in (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
    ends = [unet.out[-1]]
    ends += [layer.out_layers[-1] for layer in unet.modules() if hasattr(layer, "out_layers")]
    ends += [layer.proj_out for layer in unet.modules() if hasattr(layer, "proj_out")]
    for layer in ends:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return unet


def train(options: argparse.Namespace, pictures: Pictures) -> None:
    """Train to the end of the budget, or of this piece of it, and write `options.out` at each save."""
    device = loop.pick_device(options.device)
    torch.manual_seed(options.seed)
    shards = stamps(options.data)
    latents = cached_latents(pictures, shards, options.vae, options.data / "cache", device)
    weights = cached_weights(pictures, shards, options.data / "cache")
    records = [record for records in pictures.records for record in records]
    examples = Examples(latents, weights, records, options.seed)
    model = Denoiser(examples.ids).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = Average(list(model.parameters()), 0.999)
    budget = budget_of(options)
    recipe = loop.recipe(options, pictures) | {"autoencoder": of_file(options.vae)}
    state = loop.State(options.out, budget, {"model": model, "optimizer": optimizer, "average": average}, recipe)
    went_on = not options.restart and state.resume()
    if options.start and not went_on:
        begin_with(options.start, model, average)
    log = loop.Log(options.out.with_suffix(".log"))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.unet, model.text)]
    if options.compile:
        model.unet.compile(dynamic=False)
    log.say(
        f"{len(latents)} pictures, UNet {sizes[0]:.2f}M, text {sizes[1]:.2f}M with {len(examples.ids)} words, {device}"
    )

    def finish() -> None:
        state.save()
        average.swap()
        model.eval()
        write_tensors(options.out, halved(checkpoint(model, options, pictures, latents)))
        with torch.compiler.set_stance("force_eager"):  # a few samples are not worth compiling for
            draw(model, examples, pictures, options, budget, device)
        model.train()
        average.swap()

    def step() -> dict[str, torch.Tensor]:
        rate = learning_rate(budget.share, budget.step, options.rate, warmup=200)
        batch = [part.to(device) for part in examples.batch(options.batch, budget.step, options.seed)]
        losses = model.loss(*batch)
        descend(losses["total"], optimizer, rate)
        return losses

    loop.advance(budget, log, options.batch, optimizer, average, step, finish, 30, 60 * options.save_minutes)


def begin_with(path: Path, model: Denoiser, average: Average) -> None:
    """Begin with the weights of another run and nothing else of it: of its state, or of the checkpoint it wrote."""
    if path.suffix != ".safetensors":
        loop.load_weights(path, model, average)
        return
    import safetensors.torch

    state = safetensors.torch.load_file(path)
    model.unet.load_state_dict(under(state, "model.diffusion_model."))
    model.text.read(under(state, "cond_stage_model.transformer."))
    average.restart()


def draw(
    model: Denoiser,
    examples: Examples,
    pictures: Pictures,
    options: argparse.Namespace,
    budget: Budget,
    device: torch.device,
) -> None:
    """A sheet of samples for sixteen captions of the data, the same ones and the same noise each time."""
    captions = pictures.captions()
    chosen = [captions[i] for i in torch.linspace(0, len(captions) - 1, 16).long()]
    random = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(16, *examples.latents.shape[1:], generator=random).to(device)
    latents = model.sample(tokenize(chosen).to(device), examples.empty.to(device), noise)
    with torch.no_grad():
        shown = PortraitAutoencoder.load(options.vae).to(device).decode(latents)
    loop.sheet(shown, 4, options.out.with_name(f"{options.out.stem}-{budget.step:06d}.png"))


def checkpoint(
    model: Denoiser, options: argparse.Namespace, pictures: Pictures, latents: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Everything under SD1.5's names, as CheckpointLoaderSimple takes it once the demo is registered."""
    vae = PortraitAutoencoder.load(options.vae).state_dict()
    return (
        {f"model.diffusion_model.{name}": value for name, value in model.unet.state_dict().items()}
        | {f"cond_stage_model.transformer.{name}": value for name, value in model.text.exported().items()}
        | {f"{INSIDE}{name}": value for name, value in vae.items()}
        | {MARK: mark(UNET["num_heads"], TEXT["num_attention_heads"]), PREVIEW: preview_colours(pictures, latents)}
    )


def arguments() -> argparse.ArgumentParser:
    """What `run.py make base` takes."""
    parser = argparse.ArgumentParser(prog="run.py make base", description=__doc__, allow_abbrev=False)
    loop.add_arguments(parser, minutes=75.0, batch=32, rate=8e-4)
    parser.add_argument("--vae", type=Path, required=True, help="the autoencoder that `make vae` wrote")
    parser.add_argument("--start", type=Path, metavar="FILE", help="another run's state or checkpoint, to begin with")
    parser.add_argument("--compile", action="store_true", help="compile the UNet: minutes first, then faster")
    parser.add_argument("--save-minutes", type=float, default=10.0, help="between two saves, each with a sheet")
    return parser
