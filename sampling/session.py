"""One guided sampling run: from ComfyUI's request for a prediction to the guided step.

The session knows its method by three questions: whether it is on at a timestep (`in_window`), its mask
(`rows.face_maps`) and the gradient of its energy (`gradient.add_people`). A second method of that kind answers
them in its own way. One without an energy (IC-Portrait's residuals, Reference Attention's keys) has no guided step: its
session has a recorder and `close`, and enters where each call of the network is seen (`recorder.apply_model`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from ..backbone.clock import Clock
from ..backbone.memory import upload
from ..guidance.omniportrait.guide import (
    TIMESTEPS,
    TINY,
    in_window,
    masked_rms,
    scaled,
    step,
    weight_at,
)
from ..guidance.omniportrait.settings import SETTLED, Settings
from .conditionings import Lists, ambiguous, applies, carriers, lists_with_people
from .gradient import CallGradient, add_people, finite_pictures
from .held import HeldGradient
from .noise_mask import NoiseMask
from .passes import Passes
from .people import ByHand, assign_people
from .recorder import Recorder, session_of
from .shared_call import SharedCall
from .trace import Notes, Trace

COVERED = "other conditionings leave nothing of the picture to a person's, which is a default"


def predict_noise(
    executor: Callable, x: torch.Tensor, sigma: torch.Tensor, model_options: dict | None = None, *args, **kwargs
) -> torch.Tensor:
    """ComfyUI's PREDICT_NOISE: its own prediction, then the guided step."""
    session = session_of(model_options)
    if session is None or not session.arrive(float(sigma[0])):
        return executor(x, sigma, model_options or {}, *args, **kwargs)
    session.sampled = session.noise_mask.sampled(sigma, model_options)
    if session.nobody:
        session.leave_out(x.shape)
        return executor(x, sigma, model_options, *args, **kwargs)
    with session.predicting(executor.class_obj.conds, x, sigma):
        denoised = executor(x, sigma, model_options, *args, **kwargs)
    return session.guide(x, sigma, denoised)


class Session:
    """State of one run. Made in OUTER_SAMPLE before ComfyUI loads the model, closed when sampling ends."""

    def __init__(
        self,
        guider: object,
        vae: object,
        settings: Settings,
        by_hand: ByHand | None,
        noise: torch.Tensor,
        noise_mask: NoiseMask,
    ) -> None:
        self.noise_mask = noise_mask
        self.sampled: torch.Tensor | None = None
        """Of the call at hand: boolean [B, 1, H, W], CPU; None where all of the picture is sampled."""
        self.nobody: list[str] = []
        """Why nobody is in the pictures, once they are settled: no later call looks again."""
        self.people = assign_people(guider.conds, by_hand)
        self.recorder = Recorder({uuid for _, uuid in self.people})
        self._settings = settings
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self._clock = Clock(sampling)
        start, end = (
            self._clock.t(float(sampling.percent_to_sigma(percent)))
            for percent in (settings.start_percent, settings.end_percent)
        )
        self._window = min(start, settings.u * TIMESTEPS), end
        self._held = HeldGradient(settings.every)
        self._notes = Notes()
        everybody = {person for people in self.people.values() for person in people}
        hooked = any(cond.get("hooks") is not None for conds in guider.conds.values() for cond in conds)
        t0 = self._clock.sigma(settings.t0)
        self._passes = Passes(guider.model_patcher, vae, everybody, settings, t0, noise, hooked)
        self._sigma = float("nan")  # of the call at hand
        self._weight = 0.0  # on the strength, at the call at hand
        self._lists: Lists = {}  # of the call at hand

    def __deepcopy__(self, memo: dict) -> Session:
        """Older cores deep-copy model_options; a session is one and stays one."""
        return self

    def arrive(self, sigma: float) -> bool:
        """ComfyUI asks for a prediction at sigma. Whether the method is on there."""
        self._sigma = sigma
        t = self._clock.t(sigma)
        if t > SETTLED:
            self.nobody = []
        inside = in_window(t, self._settings.u)
        self._weight = weight_at(t, *self._window, self._settings.curve) if inside else 0.0
        self._held.arrive(sigma, self._weight > 0)
        return self._weight > 0

    @contextlib.contextmanager
    def predicting(self, conds: dict[str, list[dict]], x: torch.Tensor, sigma: torch.Tensor) -> Iterator[None]:
        """ComfyUI makes its own prediction inside, and the recorder records it. conds: the guider's, processed."""
        self._lists = lists_with_people(conds, self.people)
        self._passes.shared.clear()
        held = self._held.serving(x.shape, self._present())
        if self._settings.guided_pass == "shared" and not (held and held.complete):
            self.recorder.share = SharedCall(self._passes, self.recorder, self._lists, x, sigma, self._sigma)
        self.recorder.uuids = {cond["uuid"] for cond in self._conds_with_people()}
        self.recorder.ambiguous = ambiguous(conds)
        try:
            with self.recorder.recording():
                yield
        finally:
            self.recorder.share = None

    def guide(self, x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The guided denoised picture [B, C, H, W]; `denoised` itself, counted and reported, where memory runs out."""
        with torch.inference_mode(False), torch.enable_grad():
            x, sigma, plain = x.clone(), sigma.clone(), denoised.clone()
            gradient = held = self._held.serving(x.shape, self._present())
            if held is None or not held.complete:
                gradient = self._fresh(x, sigma)
                if gradient is not None and held is not None:
                    gradient = gradient.keeping(held)
            self._held.keep(gradient)
            if gradient is not None and gradient.empty and self._clock.t(self._sigma) <= SETTLED:
                self.nobody = [reason for _, reason in gradient.reasons]
            if gradient is None:
                self._notes.unguided(self._sigma, x.shape, "memory ran out, even with checkpointing")
                return denoised
            noise_prediction = (x - plain) / sigma.view(-1, 1, 1, 1)
            cfg = self.recorder.cfg_difference
            yardstick = noise_prediction if cfg is None else cfg.clone() / sigma.view(-1, 1, 1, 1)
            inside = gradient.inside
            g = scaled(gradient.gradient, sigma, yardstick, inside, self._settings, self._weight)
            g, finite = finite_pictures(g)
            share = masked_rms(g, inside) / masked_rms(noise_prediction, inside).clamp_min(TINY)
            effect = g if self.sampled is None else g * upload(self.sampled, g.device)
            self._notes.guided(self._sigma, gradient, share.nanmean(), (gradient.finite & finite).all(), effect.any())
            return step(plain, sigma, g)

    def leave_out(self, shape: torch.Size) -> None:
        """Note a call that is not looked at, for the reasons of the last one that was."""
        self._notes.unguided(self._sigma, shape, *self.nobody)

    def _fresh(self, x: torch.Tensor, sigma: torch.Tensor) -> CallGradient | None:
        """The gradient of the call at hand, over all conditionings that carry people. Tried again as its errors ask for
        (backbone/conditions.py); None where memory runs out twice. Other errors are raised."""
        ran_out, settings = False, self._settings.at(self._clock.t(self._sigma))
        while True:
            try:
                total = CallGradient.nothing(x, self._present(), self.sampled)
                for carrier in carriers(self._lists, x, self._sigma):
                    recorded = self.recorder.rows_of(carrier.cond)
                    if carrier.part is None:
                        total.reasons.append((None, "a person's conditioning does not apply at this timestep"))
                    elif recorded is None:
                        covered = "default" in carrier.cond and not carrier.part.mult.any()
                        total.reasons.append((None, COVERED if covered else "another node skipped the model call"))
                    else:
                        # No name for the rows here: it would hold a failed pass while the next one runs.
                        c_in = self._passes.c_in(sigma)
                        add_people(total, carrier, *self._passes.run(carrier, recorded, x, sigma), c_in, settings)
                return total.finished()
            except RuntimeError as error:
                lacking = self._passes.answer(error)
                if lacking is None:
                    raise
            self._passes.recover()  # not in the handler, whose traceback holds the failed pass
            if lacking == "checkpointing" and ran_out:
                return None
            ran_out = ran_out or lacking == "checkpointing"

    def _conds_with_people(self) -> Iterator[dict]:
        return (cond for each in self._lists.values() for cond, people in each if people)

    def _present(self) -> list[bool]:
        """Which of the conditionings that carry people apply at this sigma."""
        sigma = torch.tensor(self._sigma)
        return [applies(cond, sigma) for cond in self._conds_with_people()]

    def close(self) -> None:
        """Let go of the model and of all that the calls left, however sampling ended."""
        self._passes.close()
        self._held.keep(None)
        self.recorder.forget()

    def report(self) -> Trace:
        """What the run did, also as one line for the log."""
        return self._notes.read(self._clock)
