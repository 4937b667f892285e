"""The frozen base model, by ComfyUI's own loaders: text states, latents, and a prediction with the subject's attention.

SD1.5, SDXL and the embedded model go one way. The UNet runs as a private twin (backbone/private.py) whose blocks
can be recomputed on the way back; its attention is recorded by backbone/attention.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..backbone.attention import AttentionSites, Recording, private_options, record_attention
from ..backbone.conditions import Conditions
from ..backbone.family import LATENT_SCALE, family_of
from ..backbone.private import PrivateTwin
from ..guidance.omniportrait.objective import pooled
from ..sampling.patch import classic
from ..sampling.tokens import check_clip, find_subject, subject_in
from ..sampling.words import escaped
from .data.index import LATE_NOUN, NO_NOUN, TOKENS, BadSample
from .loop import fast_in_bf16
from .settings import Run


@dataclass(frozen=True, eq=False)
class Text:
    """rows: [77, D] states of a caption. pooled: [P] or empty. column: m, of the subject's last token, or 0."""

    rows: torch.Tensor
    pooled: torch.Tensor
    column: int


@dataclass(frozen=True, eq=False)
class Look:
    """One pass. x: what the model saw, [B, C, h, w]. sigma: [B]. noise: eps_theta, float32. recording: of attention."""

    x: torch.Tensor
    sigma: torch.Tensor
    noise: torch.Tensor
    recording: Recording


@dataclass(frozen=True, eq=False)
class Prediction:
    """noise: eps_theta, [B, C, h, w] float32. maps: A_t(m), [B, h', w'], at 16x16 or near."""

    noise: torch.Tensor
    maps: torch.Tensor


class Base:
    """UNet, text encoders and VAE of one checkpoint, frozen and on their devices."""

    def __init__(self, model: object, clip: object, vae: object, config: Run) -> None:
        check_clip(clip)
        model = classic(model)
        self.family = family_of(model)
        self.model, self.clip, self.vae = model, clip, vae
        self.net = model.model
        self.device = model.load_device
        self.checkpointing = config.checkpointing
        self.half = config.precision == "bf16" and fast_in_bf16(self.device)
        self.attach: Callable[[torch.nn.Module], None] | None = None
        """Puts what learns into the UNet's private tree, which is made anew after each `let_go`."""
        self._unet: PrivateTwin | None = None
        self._empty: Text | None = None

    def unet(self) -> PrivateTwin:
        """The UNet, on its device as a whole."""
        if self._unet is None:
            import comfy.model_management

            comfy.model_management.load_models_gpu([self.model], force_full_load=True)
            self.net.requires_grad_(False).eval()
            self._unet = PrivateTwin(self.family, self.device, Conditions(checkpointing=self.checkpointing))
            if self.attach is not None:
                self.attach(self._unet.net)
        return self._unet

    def let_go(self) -> None:
        """Before ComfyUI runs another model: it may have to move the UNet off the GPU, whose memory the private tree
        would hold. Making the tree anew takes milliseconds."""
        if self._unet is not None:
            self._unet.close()
            self._unet = None

    def make_room(self) -> None:
        """Take text encoders and VAE off the GPU, where ComfyUI leaves them: it knows of the weights' memory, but not
        of what training needs beside them. The UNet comes back with the next step."""
        import comfy.model_management

        self.empty_text()  # which every step needs
        self.let_go()
        comfy.model_management.free_memory(1e30, self.device)  # unload_all_models would touch other processes' GPUs

    @property
    def text_width(self) -> int:
        return self.family.text_width

    @property
    def channels(self) -> int:
        return self.net.latent_format.latent_channels

    @property
    def timesteps(self) -> int:
        return len(self.net.model_sampling.sigmas)

    # What is frozen: computed once a sample, and cacheable

    @torch.no_grad()
    def text(self, caption: str, subject: str, occurrence: int = 0) -> Text:
        """A caption's states and the subject's column. BadSample if it is not among the first 75 tokens."""
        tokens = self.clip.tokenize(escaped(caption))  # brackets are emphasis to ComfyUI
        try:
            column = find_subject(self.clip, tokens, subject_in(self.clip, tokens, subject), occurrence)
        except ValueError:
            raise BadSample(NO_NOUN) from None
        if column >= TOKENS - 1:
            raise BadSample(LATE_NOUN)
        return self._encoded(tokens, column)

    @torch.no_grad()
    def plain_text(self, caption: str) -> Text:
        """A caption's states, whoever it is about."""
        return self._encoded(self.clip.tokenize(escaped(caption)), 0)

    @torch.no_grad()
    def empty_text(self) -> Text:
        """The states of no text at all."""
        if self._empty is None:
            self._empty = self._encoded(self.clip.tokenize(""), 0)
        return self._empty

    def _encoded(self, tokens: dict, column: int) -> Text:
        self.let_go()
        rows, more = self.clip.encode_from_tokens_scheduled(tokens)[0]
        vector = more.get("pooled_output")
        vector = torch.zeros(0) if vector is None else vector[0].float().cpu()
        return Text(rows[0, :TOKENS].float().cpu(), vector, column)

    @torch.no_grad()
    def latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """z of pictures [B, 3, H, W] uint8: [B, C, H / 8, W / 8] in the UNet's scale, CPU float32."""
        self.let_go()
        return self.net.process_latent_in(self._encoded_pictures(pictures.movedim(1, -1).float() / 255)).float().cpu()

    def _encoded_pictures(self, images: torch.Tensor) -> torch.Tensor:
        """The VAE's latents of images [B, H, W, 3]; in tiles where the memory does not suffice."""
        try:
            return self.vae.encode(images)
        except RuntimeError as error:
            if "InferenceMode" not in str(error):
                raise
        # ComfyUI's own fall-back to tiles adds in place to what it made under inference mode, in which nodes run.
        with torch.inference_mode():
            latents = self.vae.encode_tiled(images)
        return latents.clone()

    # What is trained through

    def sigma(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.net.model_sampling.sigmas.to(self.device)[timesteps.to(self.device)].float()

    def predict(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        rows: torch.Tensor,
        vectors: torch.Tensor,
        columns: Sequence[int],
    ) -> Prediction:
        """eps_theta(z_t, t, C) and A_t(m), differentiable in the text.

        latents, noise: [B, C, h, w]. timesteps: [B] whole numbers. rows: [B, 77, D]. vectors: [B, P]. columns: m of
        each sample.
        """
        sites = self.family.sites(self.family.feature_block(-1), tuple(latents.shape[-2:]))
        seen = self.look(latents, noise, timesteps, rows, vectors, sites)
        return Prediction(seen.noise, pooled(seen.recording.token_map(columns, TOKENS)))

    def look(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        rows: torch.Tensor,
        vectors: torch.Tensor,
        sites: AttentionSites,
    ) -> Look:
        """eps_theta(z_t, t, C) and the attention of some layers, differentiable in the text and in what is attached.
        Arguments as of `predict`."""
        return self.look_at(*self.noised(latents, noise, timesteps), rows, vectors, sites)

    def noised(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, C, h, w] as a sampler has it at these timesteps [B], and its sigma [B]."""
        latents, noise, sigma = latents.to(self.device), noise.to(self.device), self.sigma(timesteps)
        return self.net.model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise.clone(), latents), sigma

    def arguments(self, x: torch.Tensor, rows: torch.Tensor, vectors: torch.Tensor | None = None) -> dict:
        """What ComfyUI gives apply_model beside x and sigma. Arguments as of `predict`; no vectors are empty ones."""
        height, width = (LATENT_SCALE * side for side in x.shape[-2:])
        given = {} if vectors is None or not vectors.shape[-1] else {"pooled_output": vectors.to(self.device)}
        conditions = self.net.extra_conds(
            noise=x, device=self.device, cross_attn=rows.to(self.device), width=width, height=height, **given
        )
        return {name: condition.cond for name, condition in conditions.items()}

    def look_at(
        self, x: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor, vectors: torch.Tensor, sites: AttentionSites
    ) -> Look:
        """The same of what a sampler has: x [B, C, h, w] noisy at sigma [B]."""
        unet, arguments = self.unet(), self.arguments(x, rows, vectors)
        options = private_options({})
        recording = record_attention(options, sites, keep_graph=True)
        with self._autocast():
            denoised = unet.whole(x, sigma, arguments, options)
        recording.close()
        predicted = (x - denoised) / sigma.view(-1, 1, 1, 1)  # the noise, however the model was taught
        return Look(x, sigma, predicted, recording)

    def _autocast(self) -> contextlib.AbstractContextManager:
        """On a CPU ComfyUI keeps float32 weights; on GPUs the weights themselves are bf16."""
        if self.half and self.device.type == "cpu":
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()


def load_base(config: Run) -> Base:
    """Load the checkpoint as Load Checkpoint does. ValueError, one sentence, for a file that is not one."""
    import comfy.model_management
    import comfy.sd

    if config.architecture == "demo":
        from ..demo.architecture import register

        register()
    path = Path(config.checkpoint).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}: give --checkpoint with the file of the base model.")
    device = comfy.model_management.get_torch_device()
    half = config.precision == "bf16" and not comfy.model_management.is_device_cpu(device)
    if half and not comfy.model_management.should_use_bf16(device):
        # ComfyUI would compute in fp16 instead, where gradients vanish unless the loss is scaled.
        raise ValueError("This GPU does not compute in bf16, which precision asks for: add --set precision=fp32.")
    options = {"dtype": torch.bfloat16 if half else torch.float32}
    loaded = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True, model_options=options)
    model, clip, vae = loaded[:3]
    return Base(model, clip, vae, config)
