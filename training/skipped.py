"""Bad samples: which and why, and whether they are too many to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from accelerate.utils import gather_object

from .data.dataset import skip_table

JUDGED_AFTER = 64
"""Samples that have to be seen before a run may stop because over half of them are bad."""
REMEMBERED = 1024
"""How many samples are judged at most, the older ones counting less: data that vanish late are noticed soon."""


class Skipped:
    """problems: what the index left out, by reason. count: how many samples it kept."""

    def __init__(self, problems: Counter[str], count: int) -> None:
        self.problems, self.count = problems, count
        self.found: dict[int, str] = {}
        """Why samples were bad, by number; those of this process."""
        self.seen = self.bad = 0.0
        """How many samples, lately, in all processes."""

    def judge(self, seen: float, bad: float) -> None:
        """Stop, in every process at the same step, when over half of all samples are bad: those that the index left
        out, and of the others the share that was bad lately. Every process has to call."""
        kept = min(1.0, REMEMBERED / (self.seen + seen))
        self.seen, self.bad = kept * (self.seen + seen), kept * (self.bad + bad)
        left = self.problems.total()
        share = (left + self.count * self.bad / self.seen) / (left + self.count)
        if self.seen >= min(JUDGED_AFTER, self.count) and share > 0.5:
            self.gather()
            raise SystemExit(
                f"{share:.0%} of the samples were bad ({left} of {left + self.count} by the index, and of the others "
                f"{self.bad / self.seen:.0%} when they were read), so the run stops; mend the shards.\n"
                + skip_table(self.reasons())
            )

    def gather(self) -> None:
        """Learn what the other processes found. Every process has to call."""
        for each in gather_object([self.found]):
            self.found |= each

    def reasons(self) -> Counter[str]:
        """Skipped samples by reason, the index's among them, each counted once; after `gather`, of all processes."""
        return self.problems + Counter(self.found.values())

    def state_dict(self) -> dict[str, object]:
        return {"found": self.found, "seen": self.seen, "bad": self.bad}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.found, self.seen, self.bad = dict(state["found"]), state["seen"], state["bad"]
