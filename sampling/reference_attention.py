"""Reference Attention inside ComfyUI: a reference face runs through the same UNet, noised to the same sigma, and its
tokens are appended to the picture's own in self-attention.

All of it is put into the options of one prediction, so nothing is left on the model, and whatever reads those options
(RB-Guidance's pass, for one) sees the same appended keys. The rows of other conditionings, and the unconditional ones,
keep ComfyUI's own attention to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

import torch

from ..backbone.attention import BlockKey, transformer_sites
from ..backbone.unet import check_supported
from ..guidance.omniportrait import mask
from ..guidance.reference_attention.attend import reference_bias, tokens_inside
from ..guidance.reference_attention.settings import COUNTS, Settings
from ..models.faces import FaceReference
from .own_face import OwnFaces
from .people import ByHand, Person, assign_people, positive_keys
from .reference_features import encode_reference, reference_arguments
from .rows import plain_attention

log = logging.getLogger("omniportrait")

KEY = "omniportrait_reference_attention"
"""Of our wrappers on a model, and of the run in one prediction's transformer_options."""
CACHE_BYTES = 512 * 2**20
Tokens = dict[BlockKey, torch.Tensor]
"""[1, M, C] of a reference's face at each block, as they enter self-attention."""
_cache: OrderedDict[tuple, Tokens] = OrderedDict()


def forget_all() -> None:
    """Empty the cache."""
    _cache.clear()


def chosen_blocks(unet: torch.nn.Module, levels: str) -> tuple[BlockKey, ...]:
    """The blocks with self-attention at the wanted levels of downsampling, in the order in which they run."""
    sites = transformer_sites(unet, len(unet.output_blocks) - 1)
    wanted = sorted({site.down for site in sites})[: COUNTS[levels]]
    return tuple(site.key for site in sites if site.down in wanted)


class Run:
    """State of one sampling run. Made in OUTER_SAMPLE before ComfyUI loads the model; dropped when sampling ends."""

    def __init__(
        self, guider: object, vae: object, settings: Settings, by_hand: ByHand | None, noise: torch.Tensor
    ) -> None:
        self.settings = settings
        self.reasons: Counter[str] = Counter()
        self.calls = 0
        patcher = guider.model_patcher
        self._people = assign_people(guider.conds, by_hand)
        self._by_uuid = {uuid: people for (_, uuid), people in self._people.items()}
        self._blocks = chosen_blocks(patcher.model.diffusion_model, settings.levels)
        sampling = patcher.get_model_object("model_sampling")
        self._window = [float(sampling.percent_to_sigma(p)) for p in (settings.end_percent, settings.start_percent)]
        self._canvas = tuple(noise.shape[-2:])
        side = max(min(self._canvas) // 8 * 8, 8)
        self._latents: dict[str, torch.Tensor] = {}
        self._keys: dict[Person, tuple] = {}
        for person in {person for people in self._people.values() for person in people}:
            self._keys[person] = _key(patcher, vae, person, side, settings, self._blocks)
            if person.face.key not in self._latents:
                self._latents[person.face.key] = encode_reference(vae, person.face, side * 8)
        several = any(len(people) > 1 for people in self._people.values()) or len(self._people) > 1
        self._faces = OwnFaces(self._by_uuid) if settings.where == "own face" or several else None
        self._tokens: dict[Person, Tokens] = {}  # of the prediction at hand
        self._areas: dict[object, object] = {}
        self._taken: set[BlockKey] = set()

    def __deepcopy__(self, memo: dict) -> Run:
        """Older cores deep-copy model_options; a run is one and stays one."""
        return self

    def acts(self, sigma: float) -> bool:
        """Whether a sigma lies in the window."""
        low, high = self._window
        return low <= sigma <= high

    def options(self, guider: object, sigma: torch.Tensor, model_options: dict) -> dict:
        """Options of one prediction with the reference in them, or with the search for the face alone."""
        base, options = guider.inner_model, dict(model_options.get("transformer_options", {}))
        self._areas = {cond["uuid"]: cond.get("area") for conds in guider.conds.values() for cond in conds}
        active = self.acts(float(sigma[0]))
        self._tokens = {}
        if active:
            self.calls += 1
            for people in self._people.values():
                for person in people:
                    self._tokens[person] = self._tokens_of(base, person, sigma[:1])
            patches = options.get("patches", {})
            options["patches"] = {**patches, "attn1_patch": [*patches.get("attn1_patch", ()), self._append]}
            self._replace(options, base)
        if self._faces is not None:
            self._faces.record(options, base.diffusion_model, self._canvas, _text_lengths(guider.conds))
        options[KEY] = self
        return {**model_options, "transformer_options": options}

    @contextlib.contextmanager
    def predicting(self) -> Iterator[None]:
        """ComfyUI makes its own prediction inside; only its attention tells where the faces are."""
        try:
            yield
        finally:
            if self._faces is not None:
                self._faces.stop()

    def _replace(self, options: dict, base: torch.nn.Module) -> None:
        """Our attention at the chosen blocks, on copies; a block where another pack's patch stands is left to it."""
        replace = {kind: dict(table) for kind, table in options.get("patches_replace", {}).items()}
        table = replace.setdefault("attn1", {})
        self._taken = {key for key in self._blocks if key in table or key[:2] in table}
        if self._taken:
            self.reasons["another node replaces the self-attention of a block"] += 1
        for key in self._blocks:
            if key not in self._taken:
                table[key] = self._attend
        options["patches_replace"] = replace

    # Inside a model call.

    def _append(self, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
        """attn1_patch: the reference's tokens behind the keys' and values' inputs. Rows that must not see them are kept
        apart in `_attend`."""
        tokens = self._appended(extra, n)
        if tokens is None:
            return n, context, value
        tokens = tokens.to(context).expand(len(n), -1, -1)
        return n, torch.cat([context, tokens], dim=1), torch.cat([value, tokens], dim=1)

    def _appended(self, extra: dict, n: torch.Tensor) -> torch.Tensor | None:
        """[1, M, C] of everybody in this call at this block, in the order of `_everybody`, or None."""
        key = (*extra.get("block", ("", 0)), extra.get("block_index", 0))
        everybody = self._everybody(extra)
        if key not in self._blocks or key in self._taken or not everybody:
            return None
        h, w = extra["activations_shape"][-2:]
        if n.shape[1] != h * w:  # another pack merges tokens or cuts the picture into tiles
            self.reasons["another node merges or tiles the tokens of a block"] += 1
            return None
        return torch.cat([self._tokens[person][key] for person in everybody], dim=1)

    def _everybody(self, extra: dict) -> list[Person]:
        """Whose tokens a call's rows may see, each once."""
        if self.settings.balance:
            return list(self._tokens)
        return [person for uuid in dict.fromkeys(extra.get("uuids", ())) for person in self._by_uuid.get(uuid, ())]

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> torch.Tensor:
        """attn1 replacement: each conditioning's rows by themselves, with its own people's tokens or with none."""
        from comfy.ldm.modules.attention import optimized_attention

        own = q.shape[1]

        def plain(rows: slice) -> torch.Tensor:
            return optimized_attention(
                q[rows], k[rows, :own], v[rows, :own], heads, attn_precision=precision, transformer_options=extra
            )

        heads, precision = extra["n_heads"], extra.get("attn_precision")
        if k.shape[1] == own:
            return plain(slice(None))
        key, everybody = (*extra["block"], extra["block_index"]), self._everybody(extra)
        counts = [self._tokens[person][key].shape[1] for person in everybody]
        rows, parts = len(q) // len(extra["uuids"]), []
        for number, uuid in enumerate(extra["uuids"]):
            here = slice(number * rows, (number + 1) * rows)
            people = self._by_uuid.get(uuid, tuple(everybody) if self.settings.balance else ())
            if not people:
                parts.append(plain(here))
                continue
            seen = [everybody.index(person) for person in people]
            keys, values = (_with(each[here], own, counts, seen) for each in (k, v))
            inside = self._inside(uuid, people, extra)
            bias = reference_bias(inside, [counts[place] for place in seen], self.settings.strength, own)
            bias = None if bias is None else bias.to(q)
            parts.append(plain_attention(q[here], keys, values, heads, mask=bias, attn_precision=precision))
        return torch.cat(parts)

    def _inside(self, uuid: object, people: tuple[Person, ...], extra: dict) -> torch.Tensor | None:
        """Boolean [B or 1, K, N]: which tokens of the rows see which person; None: all see all."""
        size = tuple(extra["activations_shape"][-2:])
        if self._faces is not None:
            return self._faces.inside(uuid, people, size)
        if self.settings.where == "region":
            return torch.cat([tokens_inside(self._region(uuid, person), size) for person in people])[None]
        return None

    def _region(self, uuid: object, person: Person) -> torch.Tensor:
        """[1, h, w] of a person's region on the conditioning's area of the canvas; all of it without one."""
        if person.mask is None:
            return torch.ones(1, *self._canvas)
        canvas = mask.shrink(person.mask.reshape(-1, *person.mask.shape[-2:])[:1].cpu(), self._canvas)
        area = self._areas.get(uuid)
        if area is None:
            return canvas
        h, w, y, x = area
        return canvas[:, y : y + h, x : x + w]

    # The reference's own call.

    def _tokens_of(self, base: torch.nn.Module, person: Person, sigma: torch.Tensor) -> Tokens:
        """Made once a sigma, or taken from the cache, on the model's device."""
        key = (*self._keys[person], float(sigma))
        known = _cache.get(key)
        if known is None:
            if person.hooks is not None:
                base.current_patcher.apply_hooks(hooks=person.hooks)
            with torch.inference_mode(False), torch.no_grad():
                known = self._call(base, person, sigma.clone())
            _remember(key, {block: tokens.cpu() for block, tokens in known.items()})
        else:
            _cache.move_to_end(key)
        return {block: tokens.to(sigma.device) for block, tokens in known.items()}

    def _call(self, base: torch.nn.Module, person: Person, sigma: torch.Tensor) -> Tokens:
        latent = base.process_latent_in(self._latents[person.face.key].clone().to(sigma.device)).float()
        arguments = reference_arguments(base, person.conditioning, latent)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(self.settings.seed)).to(latent)
        x = base.model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise, latent)
        kept: Tokens = {}

        def keep(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
            block = (*extra["block"], extra["block_index"])
            if block in self._blocks:
                h, w = extra["activations_shape"][-2:]
                kept[block] = n[:1, tokens_inside(head_mask(person.face), (h, w))[0].to(n.device)].clone()
            return n, context, value

        options = {
            "patches": {"attn1_patch": [keep]},
            "uuids": [None],
            "cond_or_uncond": [0],
            "sigmas": sigma,
        }
        base._apply_model(x, sigma, transformer_options=options, **arguments)
        return kept

    def report(self) -> None:
        """One line in the log, a warning where something was left out."""
        told = "; ".join(f"{count} times {reason}" for reason, count in self.reasons.items())
        level = logging.WARNING if self.reasons or not self.calls else logging.INFO
        log.log(level, "Reference Attention: %d calls saw the reference%s", self.calls, told and f"; {told}")


def _with(rows: torch.Tensor, own: int, counts: list[int], seen: list[int]) -> torch.Tensor:
    """[B, own + M, C] keys or values with the tokens of some of the appended people."""
    parts = rows[:, own:].split(counts, dim=1)
    return torch.cat([rows[:, :own], *(parts[place] for place in seen)], dim=1)


def _text_lengths(conds: dict[str, list[dict]]) -> dict[object, int]:
    """How many tokens each conditioning's own text has, by uuid; the first of a uuid's copies counts."""
    lengths: dict[object, int] = {}
    for key in positive_keys(conds):
        for cond in conds[key]:
            text = cond.get("model_conds", {}).get("c_crossattn")
            if text is not None:
                lengths.setdefault(cond["uuid"], text.cond.shape[1])
    return lengths


def head_mask(face: FaceReference) -> torch.Tensor:
    """[1, S, S] of a reference's crop in 0..1: the face by its mask and, around its box, room for the hair."""
    size = face.crop.shape[1]
    whole = torch.ones(1, size, size) if face.mask is None else face.mask.float().cpu()
    if face.face_box is None:
        return whole
    x0, y0, x1, y1 = face.face_box
    centre, radii = ((x0 + x1) / 2, (y0 + y1) / 2 - 0.15 * (y1 - y0)), (0.75 * (x1 - x0), 0.8 * (y1 - y0))
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    ellipse = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
    return torch.maximum(whole, ellipse[None].float())


def _key(patcher: object, vae: object, person: Person, side: int, settings: Settings, blocks: tuple) -> tuple:
    """Everything that a reference's tokens depend on but sigma, by content; models by weak reference."""
    text = hashlib.sha256()
    for tensor, options in person.conditioning:
        for part in (tensor, options.get("pooled_output")):
            if part is not None:
                text.update(part.detach().float().cpu().contiguous().numpy().tobytes())
    sampling = patcher.get_model_object("model_sampling")
    prediction = tuple(kind.__name__ for kind in type(sampling).__mro__)
    hooks = None if person.hooks is None else id(person.hooks)
    models = weakref.ref(patcher.model), patcher.patches_uuid, patcher.model.get_dtype()
    return (
        *models, weakref.ref(vae.first_stage_model), person.face.key, text.hexdigest(), side, prediction, blocks,
        settings.seed, hooks,
    )  # fmt: skip


def _remember(key: tuple, tokens: Tokens) -> None:
    """Hold the newest, as many as fit; they live on the CPU."""
    _cache[key] = tokens
    while sum(each.nbytes for held in _cache.values() for each in held.values()) > CACHE_BYTES and len(_cache) > 1:
        _cache.popitem(last=False)


def patch(model: object, vae: object, settings: Settings, by_hand: ByHand | None = None) -> object:
    """A clone of a MODEL with which any sampler node sees the reference; bare, so bit-equal, where settings are off.

    A second Reference Attention on the same model replaces the first. Raises: ValueError for models of other families,
    and where the VAE is missing.
    """
    from comfy.patcher_extension import WrappersMP

    check_supported(model)
    patched = model.clone()
    for wrappers in patched.wrappers.values():
        wrappers.pop(KEY, None)
    if settings.off:
        return patched
    if getattr(vae, "first_stage_model", None) is None:
        raise ValueError(
            "The vae input of Reference Attention holds no VAE, because the checkpoint has none; connect the one of "
            "Load VAE."
        )

    def outer_sample(executor: Callable, noise: torch.Tensor, *args: object, **kwargs: object) -> object:
        guider = executor.class_obj
        options = guider.model_options["transformer_options"]
        run = options[KEY] = Run(guider, vae, settings, by_hand, noise)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            options.pop(KEY, None)
            run.report()

    def predict_noise(
        executor: Callable, x: torch.Tensor, sigma: torch.Tensor, model_options: dict | None = None, *args, **kwargs
    ) -> object:
        run = ((model_options or {}).get("transformer_options") or {}).get(KEY)
        if run is None:
            return executor(x, sigma, model_options or {}, *args, **kwargs)
        with run.predicting():
            return executor(x, sigma, run.options(executor.class_obj, sigma, model_options), *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict_noise)
    return patched
