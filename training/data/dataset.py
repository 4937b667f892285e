"""From a config's shards to numbered samples and the plan of their batches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings import Run
from . import cache
from .augment import Augmentation
from .index import SMALL_PICTURE, Entry, expand, load
from .plan import Plan, bucket_sizes
from .samples import Cacheable, Samples

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..base import Base


@dataclass(frozen=True, eq=False)
class Dataset:
    """plan numbers the samples; problems: what the index left out, by reason."""

    samples: Cacheable
    plan: Plan
    problems: Counter[str]


def read_index(config: Run) -> tuple[list[Entry], Counter[str]]:
    """The usable samples in the shards' order, and the others by reason.

    SystemExit with the table of reasons if over half are not usable.
    """
    entries = [entry for shard in expand(config.data.shards) for entry in load(shard, config.cache, config.faces)]
    good, problems = [], Counter()
    for entry in entries:
        problem = entry.problem
        if not problem and min(entry.width, entry.height) < config.data.min_side:
            problem = SMALL_PICTURE
        if problem:
            problems[problem] += 1
        else:
            good.append(entry)
    if problems.total() * 2 > len(entries):
        raise SystemExit(
            f"{problems.total()} of {len(entries)} samples are of no use, so the run stops; mend the shards.\n"
            + skip_table(problems)
        )
    return good, problems


def people_of(entries: Iterable[Entry]) -> list[Sequence[Entry]]:
    """The pictures of each person of whom there are two or more, in the entries' order. An identity is its shard's own;
    entries without one are left out."""
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.identity:
            groups[entry.shard, entry.identity].append(entry)
    return [group for group in groups.values() if len(group) > 1]


def open_dataset(config: Run, side: int, augmentation: Augmentation | None) -> Dataset:
    """Index and plan, without the cache of latents. side, augmentation: of the reference faces."""
    entries, plan, problems = open_plan(config)
    return Dataset(Samples(entries, plan.homes, config.data, augmentation, side, config.seed), plan, problems)


def open_plan(config: Run) -> tuple[list[Entry], Plan, Counter[str]]:
    """The usable samples, the plan that numbers them, and the others by reason."""
    entries, problems = read_index(config)
    sizes = bucket_sizes(config.data.resolution, config.data.bucket_step, config.data.max_aspect)
    return entries, Plan([(entry.width, entry.height) for entry in entries], sizes, config.batch, config.seed), problems


def with_cache(data: Dataset, config: Run, base: Base, accelerator: Accelerator) -> Dataset:
    """The same samples with latents and text states from the cache, which the processes fill together."""
    process, processes = accelerator.process_index, accelerator.num_processes
    everything = range(len(data.samples.entries))
    files = _fill(data, config, base, config.cache, everything, process, processes)
    accelerator.wait_for_everyone()
    return _with(data, files)


def with_part(data: Dataset, config: Run, base: Base, folder: Path, numbers: Iterable[int]) -> Dataset:
    """The same samples, of which only those numbers are cached, in a folder of this process's own."""
    return _with(data, _fill(data, config, base, folder, numbers, 0, 1))


def _fill(data: Dataset, config: Run, base: Base, *place: object) -> dict[Path, list[int]]:
    files = cache.fill(data.samples.targets(), base, Path(config.checkpoint).expanduser(), *place)
    base.make_room()
    return files


def _with(data: Dataset, files: dict[Path, list[int]]) -> Dataset:
    return replace(data, samples=data.samples.cached(cache.Cache(files, len(data.samples.entries))))


def skip_table(reasons: Counter[str]) -> str:
    """Reasons and counts, the most frequent first."""
    if not reasons:
        return "No sample was skipped."
    width = max(map(len, reasons))
    return "\n".join(["skipped  " + "-" * width, *(f"{count:7d}  {reason}" for reason, count in reasons.most_common())])
