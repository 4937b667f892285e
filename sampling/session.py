"""One guided sampling run: what it remembers from start to end, and the guided step itself (Eq. 11 in ComfyUI's terms).

ComfyUI's x = x0 + sigma eps, so adding g to the noise prediction is denoised - sigma g, for eps, v and EDM models
alike. The gradient is taken with respect to the UNet's own input, c_in x, which for eps and v models is the paper's
variance-preserving z_t.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch

from ..backbone.clock import Clock, guided
from ..backbone.memory import out_of_memory
from ..backbone.private import PrivatePass
from ..backbone.saved import overwritten
from ..backbone.unet import feature_block, is_large
from ..guidance.omniportrait.guide import limit, masked_rms
from ..guidance.omniportrait.settings import Settings
from .conditionings import ambiguous, applies, carriers, weighted_parts
from .gradient import RowsGradient, people_gradient
from .made import Made, finite_pictures
from .people import ByHand, Person, assign_people
from .recorder import KEY, RUN_KEY, Listener
from .reference import References
from .rows import Rows, run_rows
from .shared_call import may_split, split_call
from .trace import Trace, Unread

log = logging.getLogger("omniportrait")

SAME = 1 + 1e-4
"""Sigmas no further apart are one: some samplers compute what they have."""
COVERED = "other conditionings leave nothing of the picture to a person's, which is a default"


class GuidedRun:
    """State of one run. Made in OUTER_SAMPLE before ComfyUI loads the model, closed when sampling ends."""

    def __init__(
        self, guider: object, vae: object, settings: Settings, by_hand: ByHand | None, noise: torch.Tensor
    ) -> None:
        self.settings = settings
        self.trace = Trace()
        self.people = assign_people(guider.conds, by_hand)
        self.patcher = guider.model_patcher
        self.block = feature_block(self.patcher.model.diffusion_model, settings.block)
        self.listener = Listener({uuid for _, uuid in self.people})
        self._private: PrivatePass | None = None
        self._sharing: PrivatePass | None = None
        self._shared: dict[object, Rows] = {}  # by uuid: rows that ComfyUI's own call has already run
        if settings.guided_pass == "shared":
            self.listener.share = self._share
        self._overwritten = False
        self._carriers: dict[str, list[tuple[dict, tuple[Person, ...]]]] = {}  # of the prediction at hand
        self._clock = Clock(self.patcher.get_model_object("model_sampling"))
        self._sigma = float("nan")  # of the call at hand
        self._unread: list[Unread] = []
        self._seen: list[float] = []  # sigmas inside the window, since any that was higher than its predecessor
        self._held: Made | None = None
        self._hooked = any(cond.get("hooks") is not None for conds in guider.conds.values() for cond in conds)
        everybody = (person for people in self.people.values() for person in people)
        self._references = References(everybody, self.patcher, vae, self.block, settings, noise)

    def __deepcopy__(self, memo: dict) -> GuidedRun:
        """Older cores deep-copy model_options; a run is one and stays one."""
        return self

    def wants(self, sigma: torch.Tensor) -> bool:
        """Whether Eq. 11 guides at this sigma: t <= u T."""
        before, self._sigma = self._sigma, float(sigma[0])
        if self._sigma > before * SAME:
            self._seen = []
        return guided(self._clock.t(self._sigma), self.settings.u)

    @contextlib.contextmanager
    def predicting(self, guider: object, x: torch.Tensor, sigma: torch.Tensor) -> Iterator[None]:
        """ComfyUI makes its own prediction inside, and the listener hears it."""
        self._asked = guider, x, sigma
        self._shared = {}
        self._carriers = carriers(guider.conds, self.people)
        carrying = (cond for each in self._carriers.values() for cond, people in each if people)
        self.listener.uuids = {cond["uuid"] for cond in carrying}
        self.listener.ambiguous = ambiguous(guider.conds)
        try:
            with self.listener.listening():
                yield
        finally:
            del self._asked

    # The guided step.

    def guide(self, guider: object, x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """Eq. 11: the guided denoised picture [B, C, H, W]. Falls back to `denoised`, counted and reported, where it
        cannot guide."""
        import comfy.model_management

        for checkpointing in (False, True):
            try:
                return self._guide_over_writes(guider, x, sigma, denoised, checkpointing)
            except RuntimeError as error:
                if not self._forgiven(error):
                    raise
            self._close_passes()  # not in the handler, whose traceback holds the failed pass
            comfy.model_management.soft_empty_cache()
        self._skip(x, "memory ran out, even with checkpointing")
        return denoised

    def _forgiven(self, error: RuntimeError) -> bool:
        """Whether memory ran out. Raises: ValueError where something has no gradient."""
        ran_out = out_of_memory(error)
        if self._private is not None and not ran_out:
            self._private.explain(error)
        return ran_out

    def _close_passes(self) -> None:
        for each in (self._private, self._sharing):
            if each is not None:
                each.close()
        self._private = self._sharing = None
        self._shared = {}

    def close(self) -> None:
        """Let go of the model and of all that the calls left, however sampling ended."""
        self._close_passes()
        self._held = None
        self.listener.forget()

    def _guide_over_writes(self, *args: object) -> torch.Tensor:
        """The guided step, once more with copies of what autograd keeps when another pack's patch writes into tensors
        that the way back needs (FreeU V2 does). Copies cost memory, so they are not made before."""
        try:
            return self._guide(*args)
        except RuntimeError as error:
            if self._overwritten or not overwritten(error):
                raise
        self._overwritten = True
        self._close_passes()  # not in the handler, whose traceback holds the failed pass
        return self._guide(*args)

    def _guide(
        self, guider: object, x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor, checkpointing: bool
    ) -> torch.Tensor:
        s = self.settings
        with torch.inference_mode(False), torch.enable_grad():
            x, sigma, denoised_plain = x.clone(), sigma.clone(), denoised.clone()
            made = self._still_held(x)
            if made is None or len(made.guided) < len(x):
                fresh = self._make(guider, x, sigma, checkpointing)
                made = fresh if made is None else fresh.keeping(made)
            self._held, gradient, inside = made, made.gradient, made.inside
            noise_prediction = (x - denoised_plain) / sigma.view(-1, 1, 1, 1)
            if self.listener.cfg_difference is None:
                yardstick = noise_prediction
            else:
                yardstick = self.listener.cfg_difference.clone() / sigma.view(-1, 1, 1, 1)
            if s.sigma_scale:
                gradient = gradient * (sigma / (1 + sigma**2) ** 0.5).view(-1, 1, 1, 1)  # sqrt(1 - abar_t)
            gradient, finite = finite_pictures(s.strength * limit(gradient * s.gain, yardstick, inside, s.clip))
            share_of_noise = masked_rms(gradient, inside) / masked_rms(noise_prediction, inside).clamp_min(1e-12)
            self._note(made, share_of_noise.nanmean(), (made.finite & finite).all())
            return denoised_plain - sigma.view(-1, 1, 1, 1) * gradient

    def _still_held(self, x: torch.Tensor) -> Made | None:
        """The last gradient, where it serves this call too, for the same people: for every picture in which somebody
        was guided.

        Sigmas are counted, not calls, for some samplers ask twice at one; and anew where they go up (restarts, a step
        of dpm_adaptive that is tried again), since what is held comes from a later picture.
        """
        if not self._seen or self._sigma * SAME < self._seen[-1]:
            self._seen.append(self._sigma)
        due, held = (len(self._seen) - 1) % self.settings.every == 0, self._held
        if due or held is None or not held.guided or held.gradient.shape != x.shape:
            return None
        return held if held.present == self._present() else None

    def _present(self) -> list[bool]:
        """Which of the conditionings that carry people apply at this sigma."""
        sigma = torch.tensor(self._sigma)
        return [applies(cond, sigma) for each in self._carriers.values() for cond, people in each if people]

    def _make(self, guider: object, x: torch.Tensor, sigma: torch.Tensor, checkpointing: bool) -> Made:
        """The gradient of this call, by the private pass."""
        self._open_private(guider.inner_model, x, checkpointing)
        made = Made.nothing(x)
        made.present.extend(self._present())
        for cond, part, people, share in self._guided_conds(x, sigma):
            heard = self.listener.call_of(cond)
            if part is None:
                made.reasons.append((None, "a person's conditioning does not apply at this timestep"))
            elif heard is None:
                covered = "default" in cond and not part.mult.any()
                made.reasons.append((None, COVERED if covered else "another node skipped the model call"))
            else:
                made.add(*self._rows_gradient(guider.inner_model, cond, part, heard, people, x, sigma), share)
        return made.finished()

    def _open_private(self, base: torch.nn.Module, x: torch.Tensor, checkpointing: bool) -> None:
        """Views of the loaded weights, at the first guided step: by now ComfyUI has loaded and patched them."""
        if self._private is None:
            wanted, size = self.settings.checkpointing, tuple(x.shape[-2:])
            short = wanted == "auto" and is_large(base, self.block, len(x), size, x.device)
            self._checkpointing = checkpointing or wanted == "on" or short
            self._private = self._pass(base, x.device)

    def _pass(self, base: torch.nn.Module, device: torch.device, go_on: bool = False) -> PrivatePass:
        return PrivatePass(base, self.block, self._checkpointing, device, go_on, self._overwritten)

    @property
    def _can_share(self) -> bool:
        """Not with hooks, which rewrite weights between conditionings, nor where another pack overwrites tensors."""
        return not self._hooked and not self._overwritten

    def _share(self, proceed: Callable, x: torch.Tensor, t: torch.Tensor, named: dict) -> torch.Tensor:
        """One of ComfyUI's own model calls, in which the guided rows are run with a gradient and kept for the guided
        step."""
        import comfy.model_management

        guider, whole, sigma = self._asked
        held = self._still_held(whole)
        done = held is not None and len(held.guided) == len(whole)
        if done or not self._can_share or not may_split(named, KEY):
            return proceed(x, t, named)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                own = self._run_shared(guider, whole.clone(), sigma.clone())
            return split_call(proceed, x, t, named, own) if own else proceed(x, t, named)
        except RuntimeError as error:
            if not self._forgiven(error):
                raise
        self._close_passes()  # not in the handler, whose traceback holds the failed pass
        comfy.model_management.soft_empty_cache()
        return proceed(x, t, named)

    def _run_shared(self, guider: object, x: torch.Tensor, sigma: torch.Tensor) -> dict[int, torch.Tensor]:
        """Predictions of the guided rows of the call just heard, by place in its batch; fills `_shared`."""
        self._open_private(guider.inner_model, x, False)
        self._sharing = self._sharing or self._pass(guider.inner_model, x.device, go_on=True)
        own = {}
        for cond, part, _, _ in self._guided_conds(x, sigma):
            heard = self.listener.call_of(cond)
            if heard is None or heard[0] is not self.listener.calls[-1] or cond["uuid"] in self._shared:
                continue
            if part is not None:
                self._shared[cond["uuid"]] = run_rows(self._sharing, part, *heard, x.shape[-2:], sigma, (RUN_KEY,))
                own[heard[1]], self._sharing.prediction = self._sharing.prediction, None
        return own

    def _guided_conds(
        self, x: torch.Tensor, sigma: torch.Tensor
    ) -> Iterator[tuple[dict, object | None, tuple[Person, ...], torch.Tensor]]:
        """Conditionings that carry people; what ComfyUI makes of each at this sigma, if it applies; the people; the
        share [B, C, H, W] of their list's prediction that is theirs."""
        when = torch.full(sigma.shape, self._sigma)  # on the CPU
        for each in self._carriers.values():
            parts, shares = weighted_parts([cond for cond, _ in each], x, when)
            for (cond, people), part, share in zip(each, parts, shares, strict=True):
                if people:
                    yield cond, part, people, share

    def _rows_gradient(
        self, base: torch.nn.Module, cond: dict, part: object, heard: tuple, people, x: torch.Tensor, sigma
    ) -> tuple[Rows, RowsGradient]:
        """Run one conditioning's rows, unless ComfyUI's own call has, and take its people's gradient."""
        if self._hooked:
            # Hooks (a LoRA on one conditioning) rewrite weights between conditionings: put this one's in place and look
            # again.
            base.current_patcher.apply_hooks(hooks=cond.get("hooks"))
            self._private.close()
            self._private = self._pass(base, x.device)
        references = [self._references.points(self._private, base, person, x.device) for person in people]
        rows = self._shared.pop(cond["uuid"], None) or run_rows(
            self._private, part, *heard, x.shape[-2:], sigma, (RUN_KEY,)
        )
        c_in = base.model_sampling.calculate_input(sigma, torch.ones_like(rows.x[:, :1, :1, :1]))
        return rows, people_gradient(rows, people, references, c_in, self.settings)

    # What the run leaves behind: the trace, for people.

    def _note(self, made: Made, share: torch.Tensor, finite: torch.Tensor) -> None:
        self.trace.skipped.update(reason for _, reason in made.reasons)
        self.trace.mask = made.mask
        seen = made.mask[0, 0], made.found[0, 0]
        self._unread.append(Unread(self._sigma, [each for _, each in made.similarities], share, finite, *seen))

    def _skip(self, x: torch.Tensor, reason: str) -> None:
        self._held = None
        made = Made.nothing(torch.zeros(x.shape)).finished()  # on the CPU: the device may have no memory left
        made.reasons.append((None, reason))
        self._note(made, torch.tensor(0.0), made.finite.all())

    def report(self) -> None:
        """Read the trace's numbers off the device, all at the end; then one line, a warning if any call stayed
        unguided."""
        for call in self._unread:
            self.trace.steps.append(call.read(self._clock.t(call.sigma)))
            if not call.finite:
                self.trace.skipped["the gradient was not finite"] += 1
        if self.trace.mask is not None:
            self.trace.mask = torch.nn.functional.interpolate(self.trace.mask.float(), scale_factor=8)[:, 0]
        self._unread.clear()
        if self.trace.steps or self.trace.skipped:
            log.log(logging.WARNING if self.trace.skipped else logging.INFO, self.trace.summary())
