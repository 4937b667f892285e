"""Reference Attention inside ComfyUI: a reference face runs through the same UNet, noised to the same sigma, and its
tokens are appended to the picture's own in self-attention.

All of it is put into the options of one prediction, so nothing is left on the model, and whatever reads those options
(RB-Guidance's pass, for one) sees the same appended keys. The rows of other conditionings, and the unconditional ones,
keep ComfyUI's own attention to the bit.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from uuid import uuid4

import torch

from ..backbone.attention import BlockKey, core_attention, plain_attention
from ..backbone.clock import Clock
from ..backbone.family import family_of
from ..guidance.omniportrait.settings import PRESENCE_FROM, SETTLED, T0
from ..guidance.reference_attention.attend import reference_bias
from ..guidance.reference_attention.settings import Settings
from .own_face import sites_of
from .people import ByHand, Person, assign_people
from .reference import check_vae
from .reference_tokens import ReferenceTokens, Tokens
from .reference_where import SeenFrom

log = logging.getLogger("omniportrait")

KEY = "omniportrait_reference_attention"
"""Of our wrappers on a model, and of the run in one prediction's transformer_options."""
OWN = f"{KEY}_own"
"""Where `_append` tells `_attend` of the same block how many keys there were before."""
YIELDED = f"{KEY}_yielded"
"""Where a call's options say which blocks are another node's in that call."""


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
        family, everybody = family_of(patcher), {person for each in self._by_uuid.values() for person in each}
        sampling = patcher.get_model_object("model_sampling")
        self._clock = Clock(sampling)
        self._window = [float(sampling.percent_to_sigma(p)) for p in (settings.end_percent, settings.start_percent)]
        self._references = ReferenceTokens(everybody, patcher, vae, settings, noise)
        for person, photographs in self._references.lost.items():
            self._leave_out(person, photographs)
        canvas = tuple(noise.shape[-2:])
        self._seen_from = SeenFrom(self._by_uuid, settings.where, canvas, sites_of(family, canvas))
        self._tokens: dict[Person, list[Tokens]] = {}  # of each photograph, at the prediction at hand
        self._taken: set[BlockKey] = set()
        self._table: dict[tuple, Callable] = {}  # of attention replaced, as the prediction at hand began

    def __deepcopy__(self, memo: dict) -> Run:
        """Older cores deep-copy model_options; a run is one and stays one."""
        return self

    def _leave_out(self, person: Person, photographs: int) -> None:
        """Go on without photographs that the VAE cannot encode, and without a person of whom there are no others."""
        self.reasons["the VAE makes NaN of a reference face (start ComfyUI with --fp32-vae)"] += photographs
        if photographs < len(person.face.photographs):
            return
        left = {uuid: tuple(p for p in people if p is not person) for uuid, people in self._by_uuid.items()}
        self._by_uuid = {uuid: people for uuid, people in left.items() if people}

    def acts(self, sigma: float) -> bool:
        """Whether a sigma lies in the window."""
        low, high = self._window
        return low <= sigma <= high

    def options(self, guider: object, sigma: torch.Tensor, model_options: dict) -> dict:
        """Options of one prediction with the reference in them, or with the search for the face alone."""
        base, options = guider.inner_model, dict(model_options.get("transformer_options", {}))
        self._tell_copies_apart(guider.conds)
        self._tokens, floors = {}, {}
        acts, asks = self.acts(float(sigma[0])), self._asks(float(sigma[0]))
        for person in dict.fromkeys(person for people in self._by_uuid.values() for person in people):
            if acts or asks:
                self._put_hooks(guider, person, sigma, model_options)
            if acts:
                self._read(base, person, sigma[:1])
            if asks:
                t0 = torch.full_like(sigma[:1], self._clock.sigma(T0))
                floors[person] = self.settings.presence * self._references.height(base, person, t0)
        if acts:
            patches = options.get("patches", {})
            options["patches"] = {**patches, "attn1_patch": [*patches.get("attn1_patch", ()), self._append]}
            self._replace(options)
        settled = self._clock.t(float(sigma[0])) <= SETTLED
        self._seen_from.start(guider.conds, options, floors, settled)
        self._table = options.get("patches_replace", {}).get("attn1", {})
        options[KEY] = self
        return {**model_options, "transformer_options": options}

    def _asks(self, sigma: float) -> bool:
        """Whether it is asked if the people are in the picture at all: of own faces, where noise does not hide them."""
        wanted = self.settings.presence > 0 and self._seen_from.finds_faces
        return wanted and self._clock.t(sigma) <= PRESENCE_FROM

    def _read(self, base: torch.nn.Module, person: Person, sigma: torch.Tensor) -> None:
        """A person's tokens for the prediction at hand."""
        photographs = self._references.at(base, person, sigma)
        if None in photographs:
            self.reasons["the model makes NaN of a reference face"] += photographs.count(None)
        tokens = [each for each in photographs if each is not None]
        if tokens:
            self._tokens[person] = tokens

    def _tell_copies_apart(self, conds: dict[str, list[dict]]) -> None:
        """ComfyUI copies an area to the guider's other lists under its uuid: in this run's lists it gets one of its
        own, so that only the person's own rows see the reference."""
        for key, each in conds.items():
            for cond in each:
                if cond["uuid"] in self._by_uuid and (key, cond["uuid"]) not in self._people:
                    cond["uuid"] = uuid4()

    def _put_hooks(self, guider: object, person: Person, sigma: torch.Tensor, model_options: dict) -> None:
        """The weights of a person's conditioning, where hooks (a LoRA on one conditioning) rewrite them in between."""
        if not any(cond.get("hooks") is not None for conds in guider.conds.values() for cond in conds):
            return
        patcher = guider.inner_model.current_patcher
        if person.hooks is not None:
            patcher.prepare_hook_patches_current_keyframe(sigma, person.hooks, model_options)
        patcher.apply_hooks(hooks=person.hooks)

    @contextlib.contextmanager
    def predicting(self) -> Iterator[None]:
        """ComfyUI makes its own prediction inside."""
        try:
            yield
        finally:
            self._seen_from.stop()
            self.calls += self._seen_from.seen

    def _replace(self, options: dict) -> None:
        """Our attention at the chosen blocks, on copies; a block where another pack's patch stands is left to it."""
        replaced = {kind: dict(table) for kind, table in options.get("patches_replace", {}).items()}
        table = replaced.setdefault("attn1", {})
        self._taken = {key for key in self._references.blocks if key in table or key[:2] in table}
        if self._taken:
            self.reasons["another node replaces the self-attention of a block"] += 1
        for key in self._references.blocks:
            if key not in self._taken:
                table[key] = self._attend
        options["patches_replace"] = replaced

    def yielding(self, options: dict) -> dict:
        """Options of one call of the model, without us at blocks that another node has replaced for this call alone, as
        perturbed attention does. It goes by whole blocks, and ours by their parts would hide it."""
        replaced = options.get("patches_replace", {})
        table = replaced.get("attn1", {})
        ours = {key for key in self._references.blocks if key not in self._taken} if self._tokens else set()
        yielded = {key for key in ours if key[:2] in table or table.get(key) != self._table[key]}
        if not yielded:
            return options
        left = {key: patch for key, patch in table.items() if key not in yielded or patch != self._table[key]}
        return {**options, "patches_replace": {**replaced, "attn1": left}, YIELDED: yielded}

    # Inside a model call.

    def _append(self, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
        """attn1_patch: the reference's tokens behind the keys' and values' inputs. Rows that must not see them are kept
        apart in `_attend`."""
        tokens = self._appended(extra, n)
        if tokens is None:
            return n, context, value
        extra[OWN] = context.shape[1]
        tokens = tokens.to(context).expand(len(n), -1, -1)
        return n, torch.cat([context, tokens], dim=1), torch.cat([value, tokens], dim=1)

    def _appended(self, extra: dict, n: torch.Tensor) -> torch.Tensor | None:
        """[1, M, C] of everybody in this call at this block, in the order of `_everybody`, or None."""
        key = (*extra.get("block", ("", 0)), extra.get("block_index", 0))
        everybody = self._everybody(extra)
        left = self._taken | extra.get(YIELDED, set())
        if not everybody or key in left or key not in self._references.blocks:
            return None
        h, w = extra["activations_shape"][-2:]
        if n.shape[1] != h * w:  # another pack merges tokens or cuts the picture into tiles
            self.reasons["another node merges or tiles the tokens of a block"] += 1
            return None
        return torch.cat([tokens[key] for person in everybody for tokens in self._tokens[person]], dim=1)

    def _everybody(self, extra: dict) -> list[Person]:
        """Whose tokens a call's rows may see, each once."""
        uuids = extra.get("uuids") or ()
        if self.settings.balance and uuids:
            return list(self._tokens)
        people = dict.fromkeys(person for uuid in uuids for person in self._by_uuid.get(uuid, ()))
        return [person for person in people if person in self._tokens]

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> torch.Tensor:
        """attn1 replacement: each conditioning's rows by themselves, with its own people's tokens or with none."""
        own = extra.pop(OWN, None)
        if own is None:
            return core_attention(q, k, v, extra)
        heads, precision = extra["n_heads"], extra.get("attn_precision")
        key, everybody = (*extra["block"], extra["block_index"]), self._everybody(extra)
        counts = [[tokens[key].shape[1] for tokens in self._tokens[person]] for person in everybody]
        rows, parts = len(q) // len(extra["uuids"]), []
        for number, uuid in enumerate(extra["uuids"]):
            here = slice(number * rows, (number + 1) * rows)
            wanted = self._by_uuid.get(uuid, everybody if self.settings.balance else ())
            people = [person for person in wanted if person in self._tokens]
            if not people:
                parts.append(core_attention(q[here], k[here, :own], v[here, :own], extra))
                continue
            seen = [everybody.index(person) for person in people]
            keys, values = (_with(each[here], own, list(map(sum, counts)), seen) for each in (k, v))
            inside = self._seen_from.inside(uuid, people, tuple(extra["activations_shape"][-2:]), q.device)
            bias = reference_bias(inside, [counts[place] for place in seen], self.settings.strength, own)
            bias = None if bias is None else bias.to(q)
            parts.append(plain_attention(q[here], keys, values, heads, mask=bias, attn_precision=precision))
        return torch.cat(parts)

    def report(self) -> None:
        """One line in the log, a warning where something was left out."""
        for subject, count in self._seen_from.absent.items():
            self.reasons[f"no face found at {subject!r}"] += count
        told = "; ".join(f"{count} times {reason}" for reason, count in self.reasons.items())
        level = logging.WARNING if self.reasons or not self.calls else logging.INFO
        log.log(level, "Reference Attention: %d calls saw the reference%s", self.calls, told and f"; {told}")


def _with(rows: torch.Tensor, own: int, counts: list[int], seen: list[int]) -> torch.Tensor:
    """[B, own + M, C] keys or values with the tokens of some of the appended people."""
    parts = rows[:, own:].split(counts, dim=1)
    return torch.cat([rows[:, :own], *(parts[place] for place in seen)], dim=1)


def patch(model: object, vae: object, settings: Settings, by_hand: ByHand | None = None) -> object:
    """A clone of a MODEL with which any sampler node sees the reference; bare, so bit-equal, where settings are off.

    A second Reference Attention on the same model replaces the first. Raises: ValueError for models of other families,
    and where the VAE is missing.
    """
    from comfy.patcher_extension import WrappersMP

    family_of(model)
    patched = model.clone()
    for wrappers in patched.wrappers.values():
        wrappers.pop(KEY, None)
    if settings.off:
        return patched
    check_vae(vae, "Reference Attention")

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

    def apply_model(
        executor: Callable,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: torch.Tensor | None = None,
        c_crossattn: torch.Tensor | None = None,
        control: dict | None = None,
        transformer_options: dict | None = None,
        **kwargs: object,
    ) -> object:
        options = transformer_options or {}
        if KEY in options:
            options = options[KEY].yielding(options)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict_noise)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    return patched
