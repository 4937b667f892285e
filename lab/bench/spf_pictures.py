"""Pictures of one prompt by the original and by a customised model: same noise, same sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...backbone.attention import AttentionSites
from ...demo.sampling import sampling
from ...guidance.spf_portrait.control_map import difference, fine_control
from ...guidance.spf_portrait.settings import ControlMap
from ...sampling.phrases import Columns, columns_of, complete_text, phrases_of
from ...sampling.words import escaped
from ...training.base import Base, Text, load_base
from ...training.files import write_whole
from ...training.spf_portrait import lora_file
from ...training.spf_portrait.adapters import Adapters
from ...training.spf_portrait.config import Config
from ...training.spf_portrait.dual_path import coarse_attention
from ..world.prompts import HELD_OUT_PROMPTS
from .sources import digest, of_file, of_source

SIZE = 32
"""Side of the latents."""
CODE = ("lab/bench/spf_pictures.py", "demo/autoencoder.py", "demo/architecture.py", "guidance/spf_portrait")
SUBJECTS = ("woman", "man")
CONTROL = ControlMap(distance="constant")


@dataclass(frozen=True)
class Case:
    """A held-out prompt with one of the subjects, and a seed of its own: its number."""

    number: int

    @property
    def words(self) -> dict[str, str]:
        """What a text measure looks for."""
        prompt = HELD_OUT_PROMPTS[self.number % len(HELD_OUT_PROMPTS)]
        subject = SUBJECTS[self.number // len(HELD_OUT_PROMPTS) % len(SUBJECTS)]
        return {name: getattr(prompt, name) for name in ("expression", "colour", "garment", "background")} | {
            "subject": subject
        }

    @property
    def base(self) -> str:
        return HELD_OUT_PROMPTS[self.number % len(HELD_OUT_PROMPTS)].text(self.words["subject"])


@dataclass(frozen=True)
class Customised:
    """A model: the original with some LoRAs at strengths; gated: the change goes through the control map."""

    loras: tuple[tuple[Path, float], ...] = ()
    gated: bool = False


class Studio:
    """Makes pictures, or reads them where they were made before."""

    def __init__(self, config: Config, store: Path, steps: int | None = None) -> None:
        """config: whose checkpoint. steps: of the sampler, where not the demo's."""
        self.base, self.store = load_base(config), store
        self.settings = sampling() | ({"steps": steps} if steps else {})
        self.code = digest(self.settings, of_file(Path(config.checkpoint)), of_source(*CODE))
        self._models: dict[Customised, object] = {}

    def picture(self, case: Case, model: Customised, target: str = "") -> torch.Tensor:
        """[3, S, S] in 0..1 of the base text, or of the complete text with a target."""
        named = [[of_file(lora), strength] for lora, strength in model.loras]
        name = digest(self.code, case.number, target, named, model.gated)
        file = self.store / "pictures" / f"{name}.png"
        if not file.is_file():
            picture = (self._made(case, model, target) * 255).round().byte().movedim(0, -1).numpy()
            write_whole(file, lambda out: Image.fromarray(picture).save(out, "PNG"))
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255

    @torch.no_grad()
    def _made(self, case: Case, model: Customised, target: str) -> torch.Tensor:
        import comfy.sample

        text = complete_text(case.base, target) if target else case.base
        positive, negative = self._encoded(case.base if model.gated else text), self._encoded("")
        patcher = self._gated(case, model, target) if model.gated else self.model(model)
        blank, given = torch.zeros(1, 4, SIZE, SIZE), dict(self.settings)
        with torch.inference_mode(not model.gated):
            noise = comfy.sample.prepare_noise(blank, case.number)
            result = comfy.sample.sample(
                patcher, noise, given["steps"], given["cfg"], given["sampler_name"], given["scheduler"], positive,
                negative, blank, disable_pbar=True, seed=case.number,
            )  # fmt: skip
            return self.base.vae.decode(result)[0].movedim(-1, 0).float().clamp(0, 1).clone()

    def _encoded(self, text: str) -> list:
        return self.base.clip.encode_from_tokens_scheduled(self.base.clip.tokenize(escaped(text)))

    def model(self, model: Customised) -> object:
        """The MODEL with its LoRAs, as Load LoRA makes it."""
        if model not in self._models:
            patcher = self.base.model
            for lora, strength in model.loras:
                patcher = lora_file.patched(patcher, lora_file.load(lora)[0], strength)
            self._models = {model: patcher}  # one at a time
        return self._models[model]

    def _gated(self, case: Case, model: Customised, target: str) -> object:
        """The original model, to whose prediction on the base text the LoRA's change is added where S is."""
        adapters = read_adapters(self.base, model.loras[0][0])
        base = self.base
        base.attach = adapters.attach
        base.let_go()
        patcher = base.model.clone()
        if not target:
            return patcher  # S is 0 where both texts are the base text, but for what the LoRA does to it
        columns = columns_of(base.clip, case.base, target, phrases_of(case.base))
        long, short = base.plain_text(complete_text(case.base, target)), base.plain_text(case.base)
        patcher.set_model_sampler_cfg_function(gate(base, adapters, long, short, columns))
        return patcher


def gate(base: Base, adapters: Adapters, long: Text, short: Text, columns: Columns) -> Callable[[dict], torch.Tensor]:
    """ComfyUI's cfg function: eps_ref + S (eps_res - eps_ref) in the conditional prediction's place."""
    keys = base.family.sites(base.family.feature_block(-1), (SIZE, SIZE)).cross
    sites = AttentionSites(cross=keys, self_=())

    @torch.no_grad()
    def combined(arguments: dict) -> torch.Tensor:
        x, sigma = arguments["input"].clone(), arguments["sigma"].clone()
        at = sigma.view(-1, 1, 1, 1)
        with adapters.off():
            reference = base.look_at(x, sigma, short.rows[None], short.pooled[None], sites)
        response = base.look_at(x, sigma, long.rows[None], long.pooled[None], sites)
        noise = difference(response.noise, reference.noise, CONTROL.blur, CONTROL.floor)
        looks = [coarse_attention(each.recording, keys)[0] for each in (reference, response)]
        opened, *_ = fine_control(noise[0], *looks, long.rows, columns.phrases, columns.target, CONTROL)
        change = opened * (response.noise - reference.noise) * at
        cond, uncond = arguments["cond"] + change, arguments["uncond"]  # both are x - denoised
        return uncond + arguments["cond_scale"] * (cond - uncond)

    return combined


def read_adapters(base: Base, file: Path) -> Adapters:
    """A LoRA of ours as adapters of the private tree."""
    state, _ = lora_file.load(file)
    rank = next(len(value) for key, value in state.items() if key.endswith("lora_down.weight"))
    alpha = next(float(value) for key, value in state.items() if key.endswith("alpha"))
    adapters = Adapters(base.family.net, "lora", rank, alpha, 0)
    keys = lora_file.keys_of(base.model, adapters.names)
    with torch.no_grad():
        for name in adapters.names:
            for end, weight in adapters.content(name).items():
                if end != "alpha":
                    weight.copy_(state[f"{keys[name]}.{end}"].float())
    return adapters.requires_grad_(False)
