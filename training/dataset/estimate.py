"""What a run will take: hours, traffic and money, by the user's numbers and by a pilot's where one has run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .folder import Folder
from .ledger import query

PAPER_ROWS = 2_800_000_000
"""Rows that the OmniPortrait paper selected its 1.16 million pictures from."""
METADATA_ROWS = 2.96e6
"""Rows a second that one core filters, hashes and sorts (measured)."""


@dataclass(frozen=True)
class Numbers:
    """machines of cores each, at gbit (10^9 bits a second) each. core_hour, terabyte: prices, USD.

    answer: share of addresses that give a picture. cpu: seconds of a core for each of these. kilobytes: size of one.
    kept: share of the answers that become samples.
    """

    machines: int = 1
    cores: int = 16
    gbit: float = 1.0
    core_hour: float = 0.04
    terabyte: float = 0.0
    answer: float = 0.65
    cpu: float = 0.1
    kilobytes: float = 200.0
    kept: float = 0.02


def measured(folder: Folder, numbers: Numbers) -> tuple[Numbers, int]:
    """With shares, seconds and sizes of the units that are done, and how many rows those have."""
    if not any(done for _, done in folder.unit_names()):
        return numbers, 0
    rows, answers, kept, cpu, size = query(
        "SELECT count(*), count(bytes), count(*) FILTER (status = 'kept'), sum(cpu_ms) / 1000, avg(bytes) / 1000 "
        "FROM read_parquet(?)", [folder.ledgers],
    )[0]  # fmt: skip
    if not answers:
        return numbers, 0
    return replace(numbers, answer=answers / rows, cpu=cpu / answers, kilobytes=size, kept=kept / answers), rows


def needs(rows: float, numbers: Numbers) -> dict[str, float]:
    """For so many addresses; `hours` is the longer of computing and fetching."""
    answers = rows * numbers.answer
    core_hours = answers * numbers.cpu / 3600
    terabytes = answers * numbers.kilobytes / 1e9
    computing = core_hours / (numbers.machines * numbers.cores)
    fetching = terabytes * 8e12 / (numbers.machines * numbers.gbit * 1e9) / 3600
    dollars = core_hours * numbers.core_hour + terabytes * numbers.terabyte
    return {
        "core_hours": core_hours, "hours": max(computing, fetching), "terabytes": terabytes, "dollars": dollars,
        "samples": answers * numbers.kept,
    }  # fmt: skip


def report(folder: Folder, planned: dict, numbers: Numbers) -> str:
    """The funnel of `plan`, and what this plan and one of the paper's size would take."""
    lines = [f"{planned['read']:14,}  rows read"]
    known = ("inputs", "read", "rows", "units", "buckets")
    lines += [f"{count:14,}  {reason}" for reason, count in planned.items() if reason not in known]
    lines.append(f"{planned['rows']:14,}  addresses in {planned['units']:,} units")
    if not planned["rows"]:
        return "\n".join([*lines, "Nothing is left to fetch: look at `where` and `columns` of the recipe."])
    numbers, rows = measured(folder, numbers)
    share = planned["rows"] / planned["read"]
    here, paper = needs(planned["rows"], numbers), needs(PAPER_ROWS * share, numbers)
    lines += ["", f"{'':24}{'this plan':>16}{'2.8 billion rows':>20}"]
    for name, label, digits in (
        ("core_hours", "core-hours", 1), ("hours", f"hours on {numbers.machines} machine(s)", 1),
        ("terabytes", "terabytes of traffic", 3), ("dollars", "USD", 2), ("samples", "samples", 0),
    ):  # fmt: skip
        lines.append(f"{label:24}{here[name]:16,.{digits}f}{paper[name]:20,.{digits}f}")
    origin = (
        f"measured on {rows:,} rows that are done" if rows else "assumed: run a pilot by `run --limit 20` to measure"
    )
    lines += [
        "",
        f"{numbers.answer:.0%} of the addresses answer, {numbers.cpu:.3f} core-seconds and {numbers.kilobytes:.0f} kB "
        f"a picture, {numbers.kept:.1%} of them kept ({origin}).",
        f"{numbers.machines} machine(s) of {numbers.cores} cores and {numbers.gbit:g} Gbit/s; {numbers.core_hour:g} "
        f"USD a core-hour, {numbers.terabyte:g} USD a terabyte (--machines, --cores, --gbit, --core-hour, --terabyte).",
        f"2.8 billion rows: as many as the paper selected from, {share:.1%} of them selected as here; the selecting "
        f"itself is {PAPER_ROWS / METADATA_ROWS / 60:.0f} core-minutes and the reading of the metadata.",
    ]
    return "\n".join(lines)
