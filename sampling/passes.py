"""The private passes of one run: the twin of the loaded model, how it has to be run, and the reference's features."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..backbone.conditions import Condition, Conditions
from ..backbone.family import family_of
from ..backbone.private import PrivateTwin
from ..guidance.omniportrait.settings import Settings
from .conditionings import Carrier
from .people import Person
from .recorder import Recorded
from .reference import Reference, References
from .rows import Rows, run_rows


class Passes:
    """Made before ComfyUI loads the model; the twin is opened at the first guided step, when ComfyUI has loaded and
    patched the weights.

    t0: sigma of the reference. hooked: whether hooks (a LoRA on one conditioning) rewrite weights between
    conditionings. Raises: ValueError for models of other families, and when the VAE does not belong to the model.
    """

    def __init__(
        self,
        patcher: object,
        vae: object,
        people: Iterable[Person],
        settings: Settings,
        t0: float,
        noise: torch.Tensor,
        hooked: bool,
    ) -> None:
        self.family = family_of(patcher)
        self.block = self.family.feature_block(settings.block)
        self.shared: dict[object, Rows] = {}
        """By uuid: rows that ComfyUI's own call has already run (shared_call.py)."""
        self._references = References(people, patcher, vae, self.block, t0, settings, noise)
        self._conditions = Conditions(checkpointing=settings.checkpointing == "on")
        self._choose = settings.checkpointing == "auto"
        self._hooked = hooked
        self._twin: PrivateTwin | None = None

    @property
    def may_share(self) -> bool:
        """Not with hooks, nor where another pack overwrites tensors, which needs copies of them."""
        return not self._hooked and not self._conditions.copying

    def c_in(self, sigma: torch.Tensor) -> torch.Tensor:
        """[B, 1, 1, 1], what ComfyUI multiplies x by before the network: for eps and v models that is the papers'
        variance-preserving z_t."""
        ones = torch.ones(len(sigma), 1, 1, 1, device=sigma.device)
        return self.family.base.model_sampling.calculate_input(sigma, ones)

    def run(
        self, carrier: Carrier, recorded: Recorded, x: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[Rows, list[Reference]]:
        """One conditioning's rows, unless ComfyUI's own call has run them, and the references of its people."""
        if self._hooked:  # put this one's weights in place and look again
            self.family.base.current_patcher.apply_hooks(hooks=carrier.cond.get("hooks"))
            self.close()
        twin = self._open(x)
        references = [self._references.of(twin, person, x.device) for person in carrier.people]
        rows = self.shared.pop(carrier.cond["uuid"], None)
        return rows or run_rows(twin, self.block, carrier.part, recorded, x.shape[-2:], sigma), references

    def share(self, carrier: Carrier, recorded: Recorded, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The prediction of one conditioning's rows, which are kept for `run`."""
        rows = run_rows(self._open(x), self.block, carrier.part, recorded, x.shape[-2:], sigma, True)
        self.shared[carrier.cond["uuid"]] = rows
        return rows.denoised

    def _open(self, x: torch.Tensor) -> PrivateTwin:
        """The twin, for latents like x [B, C, H, W]."""
        if self._twin is None:
            if self._choose and self.family.is_large(self.block, len(x), tuple(x.shape[-2:]), x.device):
                self._conditions.checkpointing = True
            self._twin = PrivateTwin(self.family, x.device, self._conditions)
        return self._twin

    def answer(self, error: RuntimeError) -> Condition | None:
        """What helps against an error of a pass, from the next twin on; None where nothing does, and the handler raises
        it again (raised here, this frame would hold the error that holds this frame). Then `recover`, outside of the
        handler, whose traceback holds the failed pass. Raises: ValueError, a sentence for the user, where something has
        no gradient."""
        condition = self._conditions.answer(error)
        if condition is None and self._twin is not None:
            self._twin.explain(error)
        return condition

    def recover(self) -> None:
        """Start afresh after an error."""
        import comfy.model_management

        self.close()
        comfy.model_management.soft_empty_cache()

    def close(self) -> None:
        """Let go of the model's weights and of the rows that were run."""
        if self._twin is not None:
            self._twin.close()
        self._twin = None
        self.shared.clear()
