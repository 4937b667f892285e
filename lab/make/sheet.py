"""`python run.py make sheet --checkpoint FILE`: 64 samples of the demo model over all classes, docs/images/samples.jpg.

Every expression, garment, colour and background of the portrait world comes up; the captions go into a text file
beside the picture, in reading order. Sampled by ComfyUI itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ... import environment
from ...demo.sampling import sampling


def wanted(count: int) -> list[dict[str, str]]:
    """What each sample should show: goes round each kind of class at its own pace."""
    from ..world.view import BACKGROUNDS, COLOURS, EXPRESSIONS, GARMENTS

    expressions, colours = list(EXPRESSIONS), list(COLOURS)
    garments, backgrounds = list(GARMENTS), list(BACKGROUNDS)
    return [
        {
            "subject": ("woman", "man")[index % 2],
            "expression": expressions[index % len(expressions)],
            "colour": colours[(index + index // len(colours)) % len(colours)],
            "garment": garments[(3 * index + index // len(garments)) % len(garments)],
            "background": backgrounds[(5 * index) % len(backgrounds)],
        }
        for index in range(count)
    ]


def samples(checkpoint: Path, texts: list[str], how: Mapping[str, object], seed: int) -> np.ndarray:
    """[N, 256, 256, 3] uint8, one for each text. how: as `sampling` gives it."""
    import comfy.sample
    import comfy.sd
    import torch

    from ...demo.architecture import register

    register()
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_clip=True, output_vae=True)
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    pictures = []
    with torch.inference_mode():
        for index, text in enumerate(texts):
            latent = torch.zeros(1, 4, 32, 32)
            noise = comfy.sample.prepare_noise(latent, seed + index)
            positive = clip.encode_from_tokens_scheduled(clip.tokenize(text))
            latent = comfy.sample.sample(
                model, noise, how["steps"], how["cfg"], how["sampler_name"], how["scheduler"], positive, negative,
                latent, seed=seed + index, disable_pbar=True,
            )  # fmt: skip
            pictures.append((vae.decode(latent)[0].clamp(0, 1) * 255 + 0.5).byte().cpu().numpy())
            print(f"{index + 1}/{len(texts)} {text}", flush=True)
    return np.stack(pictures)


def obeyed(pictures: np.ndarray, descriptions: list[dict[str, str]]) -> str:
    """What the text measure says: the share of samples that show the wanted word, for each kind of class."""
    import torch

    from ..measures.text import TextMeasure

    shown = torch.from_numpy(pictures).movedim(3, 1).float() / 255
    with torch.inference_mode():
        right = TextMeasure.load().agreement(shown, descriptions)
    return ", ".join(f"{head} {100 * values.float().mean():.0f}%" for head, values in right.items())


def faces(pictures: np.ndarray) -> int:
    """In how many samples the detector finds a face."""
    import torch

    from ...models.faces.embedder import find_landmarks

    shown = torch.from_numpy(pictures).movedim(3, 1).float() / 255
    return sum(find_landmarks(picture) is not None for picture in shown)


def main(words: list[str]) -> None:
    from PIL import Image

    from ..world.view import describe

    parser = argparse.ArgumentParser(prog="run.py make sheet", description=__doc__, allow_abbrev=False)
    root = environment.ROOT
    parser.add_argument("--checkpoint", type=Path, default=root / "demo/weights/omniportrait_demo.safetensors")
    parser.add_argument("--out", type=Path, default=root / "docs/images/samples.jpg")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=sampling()["steps"])
    parser.add_argument("--cfg", type=float, default=sampling()["cfg"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    environment.use_comfyui()
    descriptions = wanted(options.count)
    texts = [describe(**description) for description in descriptions]
    how = sampling() | {"steps": options.steps, "cfg": options.cfg}
    pictures = samples(options.checkpoint, texts, how, options.seed)
    rows = [np.concatenate(pictures[start : start + 8], 1) for start in range(0, len(pictures), 8)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows, 0)).save(options.out, quality=88)
    options.out.with_suffix(".txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    print(f"The prompt is obeyed: {obeyed(pictures, descriptions)}")
    print(f"A face is found in {faces(pictures)} of {len(pictures)}.")
    print(f"{options.out}: {len(texts)} samples; their captions are in {options.out.with_suffix('.txt')}")
