"""Which sample comes when. All of it is a function of seed, epoch and position, so that a run can be resumed at any
step and split over any number of processes without a change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..loop import seeded


def bucket_sizes(resolution: int, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """(width, height) of the aspect buckets: multiples of `step` of about resolution^2 pixels; step 0: the square."""
    if not step:
        return [(resolution, resolution)]
    sizes = {(resolution, resolution)}
    for width in range(step, int(resolution * math.sqrt(max_aspect)) + step, step):
        height = resolution * resolution // width // step * step
        if height and max(width / height, height / width) <= max_aspect:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect is nearest."""
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1] * height / width)), size))


@dataclass(frozen=True)
class Slot:
    """One place of a batch: the sample's number, and what its randomness hangs on."""

    sample: int
    epoch: int
    position: int


@dataclass(frozen=True)
class Batch:
    """A global batch; all pictures have one size (width, height)."""

    size: tuple[int, int]
    slots: tuple[Slot, ...]

    def share(self, process: int, processes: int) -> tuple[Slot, ...]:
        """A process's part. The batch is divisible."""
        count = len(self.slots) // processes
        return self.slots[process * count : (process + 1) * count]


class Plan:
    """Global batches by step.

    shapes: (width, height) of each sample's picture. Every sample comes once an epoch; the last batch of a bucket is
    filled up from the bucket's start. A bucket that has less than a batch joins its nearest neighbour that has more.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]], batch: int, seed: int
    ) -> None:
        if not shapes:
            raise ValueError("No sample is left to train on: see the table of the reasons.")
        self.seed, self.batch_size = seed, batch
        chosen = [nearest(*shape, sizes) for shape in shapes]
        counts = {size: chosen.count(size) for size in set(chosen)}
        kept = [size for size, count in counts.items() if count >= batch] or [max(counts, key=lambda s: (counts[s], s))]
        homes = {size: size if size in kept else nearest(*size, sorted(kept)) for size in counts}
        self.homes = [homes[size] for size in chosen]
        """The bucket of each sample."""
        self.members = {size: [i for i, home in enumerate(self.homes) if home == size] for size in sorted(kept)}
        self.per_epoch = sum(math.ceil(len(members) / batch) for members in self.members.values())
        self._epoch: tuple[int, list[tuple[tuple[int, int], list[int]]]] = (-1, [])

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        epoch, number = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        size, samples = self._epoch[1][number]
        start = number * self.batch_size
        return Batch(size, tuple(Slot(sample, epoch, start + i) for i, sample in enumerate(samples)))

    def _order(self, epoch: int) -> list[tuple[tuple[int, int], list[int]]]:
        batches = []
        for size, members in self.members.items():
            order = torch.randperm(len(members), generator=seeded(self.seed, epoch, "order", *size)).tolist()
            wanted = math.ceil(len(order) / self.batch_size) * self.batch_size
            cycled = [members[order[i % len(order)]] for i in range(wanted)]
            batches += [(size, cycled[i : i + self.batch_size]) for i in range(0, wanted, self.batch_size)]
        mixed = torch.randperm(len(batches), generator=seeded(self.seed, epoch, "batches")).tolist()
        return [batches[i] for i in mixed]
