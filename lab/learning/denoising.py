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
from ...training.loop import Average, descend, learning_rate, seeded
from . import loop
from .examples import Examples, cached_latents, cached_weights, of_file, preview_colours, stamps
from .levels import WEIGHTINGS
from .loop import Budget, budget_of
from .pictures import Pictures
from .text import TextModel, tokenize
from .words import Sitters, Words, noun_columns, shape_size, with_words


def plain_attention(_, q, *args, **options):
    """ComfyUI's own pick may have no backward, and torch's takes two to four times as long for so few tokens (256) on a
    CPU in bfloat16."""
    return (attention_pytorch if q.is_cuda else attention_basic)(q, *args, **options)


PLAIN_ATTENTION = {"optimized_attention_override": plain_attention}


TEXT_PATH = (".attn2.", ".norm2.")
"""What the UNet's parameters that read the text have in their names."""


class Denoiser(nn.Module):
    """The UNet and the text encoder that trains with it."""

    def __init__(self, ids: torch.Tensor, weighting: str = "min-snr"):
        super().__init__()
        self.weighting = WEIGHTINGS[weighting]()
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
        words: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The loss to descend, weighted by noise level and by place (`weights` [h, w]), and the `plain` one.

        words: [B, D], what is added to the state of the noun in `tokens` [B, 77].
        """
        sigma = self.sigmas[steps].view(-1, 1, 1, 1)
        noisy = (latents + sigma * noise) / (1 + sigma**2).sqrt()
        with loop.mixed(latents.device):
            states = self.text(tokens)
            if words is not None:
                states = with_words(states, words, noun_columns(tokens))
            predicted = self.predict(noisy, steps, states)
        error = (predicted.float() - noise).square().mean(1)
        of_sample = (weights * error).mean((1, 2))
        total = (self.weighting(steps, self.sigmas[steps], of_sample) * of_sample).mean()
        return {"total": total, "plain": error.mean()}

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
    if not options.looks:
        records = [record | {"looks": ()} for record in records]
    examples = Examples(latents, weights, records, options.seed, options.least_step)
    model = Denoiser(examples.ids, options.weighting).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(groups(model, options.path_rate), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = Average(list(model.parameters()), options.average)
    budget = budget_of(options)
    recipe = loop.recipe(options, pictures) | {"autoencoder": of_file(options.vae)}
    state = loop.State(options.out, budget, {"model": model, "optimizer": optimizer, "average": average}, recipe)
    went_on = not options.restart and state.resume()
    if options.start and not went_on:
        begin_with(options.start, model, average)
    sitters = sitters_of(records, options) if options.words else None
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
        write_tensors(options.out, halved(checkpoint(model, options.vae, pictures, latents)))
        if options.sheets:
            with torch.compiler.set_stance("force_eager"):  # a few samples are not worth compiling for
                draw(model, examples, pictures, options, budget, device)
        model.train()
        average.swap()

    def step() -> dict[str, torch.Tensor]:
        rate = learning_rate(budget.share, budget.step, options.rate, warmup=options.warmup)
        losses = model.loss(*drawn(examples, sitters, options.word_share, options, budget.step, device))
        descend(losses["total"], optimizer, rate)
        return losses

    loop.advance(budget, log, options.batch, optimizer, average, step, finish, 30, 60 * options.save_minutes)


def drawn(
    examples: Examples,
    sitters: Sitters | None,
    share: float,
    options: argparse.Namespace,
    step: int,
    device: torch.device,
) -> list[torch.Tensor]:
    """What `Denoiser.loss` takes of a training step; with `sitters` also the words of a `share` of its captions."""
    batch = [*examples.batch(options.batch, step, options.seed)]
    if sitters:
        index = loop.batch_indices(len(examples.latents), options.batch, step, options.seed)
        batch.append(sitters.words_of(index, share, seeded(options.seed + 2, step)))
    return [part.to(device) for part in batch]


def groups(model: Denoiser, path_rate: float) -> list[dict]:
    """All parameters for the optimiser, the text path's with `path_rate` times the learning rate."""
    path = {id(v) for name, v in model.unet.named_parameters() if any(part in name for part in TEXT_PATH)}
    parts = [], []
    for value in model.parameters():
        parts[id(value) in path].append(value)
    return [{"params": parts[False]}, {"params": parts[True], "times": path_rate}]


def sitters_of(records: list[dict], options: argparse.Namespace) -> Sitters:
    """Who is in the pictures, with the words of the run of `make words` whose state is `options.words`."""
    words = Words(shape_size()).taught(options.words)
    sitters = Sitters(records, words, options.data / "cache" / "people.npz", options.world_seed)
    sitters.describe()
    return sitters


def begin_with(path: Path, model: Denoiser, average: Average | None = None) -> None:
    """Begin with the weights of another run and nothing else of it: of its state, or of the checkpoint it wrote."""
    if path.suffix != ".safetensors":
        loop.load_weights(path, model, average)
        return
    import safetensors.torch

    state = safetensors.torch.load_file(path)
    model.unet.load_state_dict(under(state, "model.diffusion_model."))
    model.text.read(under(state, "cond_stage_model.transformer."))
    if average:
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


def checkpoint(model: Denoiser, vae: Path, pictures: Pictures, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything under SD1.5's names, as CheckpointLoaderSimple takes it once the demo is registered. vae: the file of
    the autoencoder."""
    autoencoder = PortraitAutoencoder.load(vae).state_dict()
    return (
        {f"model.diffusion_model.{name}": value for name, value in model.unet.state_dict().items()}
        | {f"cond_stage_model.transformer.{name}": value for name, value in model.text.exported().items()}
        | {f"{INSIDE}{name}": value for name, value in autoencoder.items()}
        | {MARK: mark(UNET["num_heads"], TEXT["num_attention_heads"]), PREVIEW: preview_colours(pictures, latents)}
    )


def arguments() -> argparse.ArgumentParser:
    """What `run.py make base` takes."""
    parser = argparse.ArgumentParser(prog="run.py make base", description=__doc__, allow_abbrev=False)
    loop.add_arguments(parser, minutes=75.0, batch=32, rate=8e-4)
    parser.add_argument("--vae", type=Path, required=True, help="the autoencoder that `make vae` wrote")
    parser.add_argument("--start", type=Path, metavar="FILE", help="another run's state or checkpoint, to begin with")
    parser.add_argument("--compile", action="store_true", help="compile the UNet: minutes first, then faster")
    parser.add_argument("--save-minutes", type=float, default=10.0, help="between two saves")
    parser.add_argument("--sheets", action=argparse.BooleanOptionalAction, default=True, help="samples at each save")
    parser.add_argument("--weighting", choices=WEIGHTINGS, default="min-snr", help="how much a noise level counts")
    parser.add_argument("--least-step", type=int, default=0, help="lowest noise, of 1000 steps")
    parser.add_argument("--path-rate", type=float, default=1.0, help="the text path's learning rate, in --rate")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--warmup", type=int, default=200, help="steps before the full rate")
    parser.add_argument(
        "--looks", action=argparse.BooleanOptionalAction, default=True, help="captions tell what people look like"
    )
    parser.add_argument("--words", type=Path, metavar="FILE", help="state of `make words`: captions have its words")
    parser.add_argument("--word-share", type=float, default=0.7, help="of captions that have their person's word")
    parser.add_argument("--world-seed", type=int, default=0, help="`--seed` of `make pictures`")
    return parser
