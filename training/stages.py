"""The stages of a run: each has steps and a rate of its own, and begins with a new optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """name: of its own exported file, which the later stages leave as it is; "" where there is only one."""

    name: str
    steps: int
    rate: float


class Stages:
    """Where a run is among its stages. A border is a share of the budget, so a run that is limited in minutes gives
    each stage its part of them. number, first: of the stage that runs, and the step at which it began."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        total = sum(stage.steps for stage in stages)
        done = [sum(stage.steps for stage in stages[:number]) for number in range(len(stages) + 1)]
        self.stages, self.borders = list(stages), [steps / total for steps in done]
        self.number = self.first = 0

    @property
    def stage(self) -> Stage:
        """The one that runs."""
        return self.stages[self.number]

    def over(self, share: float) -> bool:
        """Whether the next stage has to begin once so much of the budget is spent."""
        return self.number + 1 < len(self.stages) and share >= self.borders[self.number + 1]

    def next(self, step: int) -> None:
        self.number, self.first = self.number + 1, step

    def share(self, share: float) -> float:
        """How much of the stage's own budget is spent, of that of the run."""
        start, end = self.borders[self.number : self.number + 2]
        return (share - start) / (end - start)

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number, "first": self.first}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.number, self.first = state["number"], state["first"]
