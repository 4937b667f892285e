"""The Pivot ID Encoder (OmniPortrait, Sec. 3.2; SPEC 1A.1): a face and its noun's embedding in, the pivot e_mix out.

    e_ref = projections(CLS of the open_clip image tower after its last layer norm)
    e_mix = linear([e_ref, e_txt])             fusion "linear", the paper's
    e_mix = e_txt + mlp([e_ref, e_txt])        fusion "mlp"

Both fusions begin as e_mix = e_txt, bit for bit, so training starts from embeddings that the frozen denoiser knows. The
text width is that of the conditioning: 768 for SD1.5, 768 + 1280 for SDXL, one projection for each of the two text
encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

FAMILIES: dict[str, tuple[int, ...] | None] = {"sd15": (768,), "sdxl": (768, 1280), "generic": None}
"""Base family to the widths of its text encoders; a generic encoder fits any model of the same total text width."""

FUSIONS = ("linear", "mlp")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FACE_MARGIN = 1.4
"""Side of the square that the tower sees, in longer sides of the face: up to the hair line and the chin."""


@dataclass(frozen=True)
class TowerConfig:
    """What open_clip's VisionTransformer is built from. The defaults are ViT-L/14's.

    mean, std: of red, green and blue in 0..1, by which pictures were normalised when the tower was first trained.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    head_width: int = 64
    mlp_ratio: float = 4.0
    quick_gelu: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


@dataclass(frozen=True)
class PivotConfig:
    """family: a key of FAMILIES. text_dims: widths of the text encoders, in the conditioning's order."""

    family: str = "sd15"
    text_dims: tuple[int, ...] = (768,)
    tower: TowerConfig = TowerConfig()
    fusion: str = "linear"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f'The base family is "{self.family}", but must be one of {", ".join(FAMILIES)}.')
        expected = FAMILIES[self.family]
        if expected is not None and self.text_dims != expected:
            raise ValueError(
                f"The text widths of {self.family} are {expected}, not {self.text_dims}: use generic instead."
            )
        if self.fusion not in FUSIONS:
            raise ValueError(f'The fusion is "{self.fusion}", but must be one of {", ".join(FUSIONS)}.')

    @property
    def text_width(self) -> int:
        return sum(self.text_dims)


class LinearFusion(nn.Linear):
    """The paper's single linear layer over [e_ref, e_txt], beginning as [0 | I]."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, width)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, width:].fill_diagonal_(1.0)
            self.bias.zero_()

    def forward(self, reference: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat([reference, text], dim=-1))


class MLPFusion(nn.Module):
    """e_txt plus a two-layer perceptron over [e_ref, e_txt] whose last layer begins as zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.inner = nn.Linear(2 * width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, reference: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        hidden = self.inner(self.norm(torch.cat([reference, text], dim=-1)))
        return text + self.outer(nn.functional.gelu(hidden))


class PivotEncoder(nn.Module):
    """Image tower, projections and fusion. The tower computes in its weights' dtype, all behind it in float32."""

    def __init__(self, config: PivotConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = _build_tower(config.tower)
        self.projections = nn.ModuleList(nn.Linear(config.tower.width, dim, bias=False) for dim in config.text_dims)
        self.fusion = (LinearFusion if config.fusion == "linear" else MLPFusion)(config.text_width)

    def forward(self, pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """pixels: [B, 3, S, S] from `prepare_face`. text: e_txt, [B, text_width]. Returns e_mix, [B, text_width]
        float32."""
        return self.fuse(self.reference(pixels), text)

    def reference(self, pixels: torch.Tensor) -> torch.Tensor:
        """e_ref [B, text_width] float32 of pixels [B, 3, S, S]."""
        pixels = renormalised(pixels, self.config.tower)
        pooled = self.tower(pixels.to(self.tower.conv1.weight.dtype)).float()
        with torch.autocast(pooled.device.type, enabled=False):
            return torch.cat([projection(pooled) for projection in self.projections], dim=-1)

    def fuse(self, reference: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """e_mix [B, text_width] float32. ValueError if the text has another width than the encoder."""
        if text.shape[-1] != self.config.text_width:
            raise ValueError(
                f"The text embedding is {text.shape[-1]} wide, but this pivot encoder was made for "
                f"{self.config.family}, which is {self.config.text_width} wide: use a checkpoint and a pivot encoder "
                "of the same base family."
            )
        with torch.autocast(text.device.type, enabled=False):
            return self.fusion(reference.float(), text.float())

    def train_layers(self, layers: int | None) -> None:
        """Let the last `layers` blocks of the tower learn, or all of it (None, the paper), or none (0); the rest
        always learns."""
        self.requires_grad_(True)
        if layers is None:
            return
        self.tower.requires_grad_(False)
        blocks = self.tower.transformer.resblocks
        for block in blocks[max(len(blocks) - layers, 0) :]:
            block.requires_grad_(True)
        if layers:
            self.tower.ln_post.requires_grad_(True)

    def load_pretrained_tower(self, state: Mapping[str, torch.Tensor]) -> None:
        """Start from an open_clip checkpoint: its `visual.` weights, and `visual.proj` where the shape is right.

        ValueError if the checkpoint is of another tower than the config.
        """
        visual = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
        if not visual:
            found = "transformers names them" if any("vision_model." in key for key in state) else "of another kind"
            raise ValueError(
                f"These weights are {found}, but must be open_clip's, whose image tower is called visual: use "
                "open_clip_pytorch_model.bin or open_clip_model.safetensors of the same model."
            )
        proj = visual.pop("proj", None)
        try:
            self.tower.load_state_dict(visual)
        except RuntimeError as error:
            raise ValueError(
                f"These weights do not fit the image tower {self.config.tower}: choose the open_clip model that does."
            ) from error
        for projection in self.projections:
            if proj is not None and projection.weight.shape == proj.T.shape:
                projection.load_state_dict({"weight": proj.T})


def _build_tower(config: TowerConfig) -> nn.Module:
    """open_clip's own ViT, without the projection that would follow its pooled, layer-normed CLS feature."""
    from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer

    tower = VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        heads=config.width // config.head_width,
        mlp_ratio=config.mlp_ratio,
        output_dim=1,
        act_layer=QuickGELU if config.quick_gelu else nn.GELU,
        norm_layer=LayerNorm,
    )
    tower.proj = None
    return tower


def renormalised(pixels: torch.Tensor, tower: TowerConfig) -> torch.Tensor:
    """Pixels [B, 3, S, S] as `prepare_face` gives them, in CLIP's mean and deviation, in the tower's own instead."""
    if (tower.mean, tower.std) == (CLIP_MEAN, CLIP_STD):
        return pixels
    clip_mean, clip_std, mean, std = (
        pixels.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD, tower.mean, tower.std)
    )
    return (pixels * clip_std + clip_mean - mean) / std


def prepare_face(
    crop: torch.Tensor,
    size: int,
    mask: torch.Tensor | None = None,
    face_box: tuple[float, float, float, float] | None = None,
) -> torch.Tensor:
    """What the tower sees of a face: a square about 1.4 times the face, resized with antialiasing, in CLIP's mean and
    deviation.

    crop: [B, S, S, 3] in 0..1.
    mask: [B, S, S] of the face, whose bounds stand in for a missing face box.
    face_box: x0, y0, x1, y1 in pixels of the crop. With neither, the whole crop.
    Returns [B, 3, size, size]; differentiable in the crop. The background is kept as it is: FastComposer fills it with
    noise, which the paper does not mention. A tower of another mean and deviation than CLIP's converts it itself.
    """
    from kornia.geometry.transform import resize

    side = crop.shape[1]
    box = face_box or (None if mask is None else _bounds(mask))
    x, y, length = (0, 0, side) if box is None else _square(box, side)
    pixels = crop[:, y : y + length, x : x + length, :3].movedim(-1, 1)
    pixels = resize(pixels, (size, size), interpolation="bilinear", align_corners=False, antialias=True).clamp(0, 1)
    mean, deviation = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / deviation


def _bounds(mask: torch.Tensor) -> tuple[float, float, float, float] | None:
    inside = (mask > 0.5).reshape(-1, *mask.shape[-2:]).any(0)
    if not inside.any():
        return None
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _square(box: tuple[float, float, float, float], side: int) -> tuple[int, int, int]:
    """x, y and length of the margined square around the box, moved inside a picture of `side` pixels."""
    x0, y0, x1, y1 = box
    length = min(max(round(FACE_MARGIN * max(x1 - x0, y1 - y0)), 1), side)
    x, y = (round((low + high - length) / 2) for low, high in ((x0, x1), (y0, y1)))
    return min(max(x, 0), side - length), min(max(y, 0), side - length), length
