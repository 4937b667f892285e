"""What the soak makes of its readings: a small leak is found, noise is not one, and what cannot be told is no pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
from omniportrait.lab.bench import soak, soak_report, trend

LEVELS = {"plain": 1105.0, "guided, crop 1.6": 1106.0, "guided, crop 2.0": 1109.0, "guided, crop 2.6": 1116.0}
SEEDS = range(20)


def name_of(number: int) -> str:
    crop = soak.turn(number)
    return "plain" if crop is None else f"guided, crop {crop}"


def run_of(seed: int, leak: float, prompts: int = soak.PROMPTS, step: float = 0.0) -> list[soak_report.Asked]:
    """Readings like those of a real run of 200: models loaded in the first, a level for each kind of prompt, half of
    the readings on it, most others some MiB off, one in ten 10 to 28 MiB below. leak: MiB a prompt; step: MiB that come
    at once in the middle."""
    draw = np.random.default_rng(seed)
    noise = np.where(draw.random(prompts) < 0.5, draw.normal(0, 0.05, prompts), draw.normal(0, 4.0, prompts))
    noise -= np.where(draw.random(prompts) < 0.1, draw.uniform(10, 28, prompts), 0)
    loading = np.array([30, 15, 20, 10, *[0] * prompts])[:prompts]
    numbers = np.arange(prompts)
    grown = leak * numbers + step * (numbers > prompts // 2)
    return [
        soak_report.Asked(name, name, 2.0 * k, 2.0 * k + 1.5, int((LEVELS[name] + change) * soak_report.MIB), 0)
        for k, (name, change) in enumerate(zip(map(name_of, numbers), grown + noise - loading, strict=True))
    ]


def faults(asked: list[soak_report.Asked]) -> list[str]:
    """With the limits that a call without options has."""
    options = soak.options_of([])
    return soak_report.faults(asked, options.allowed, options.allowed_slope)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leak_of_a_tenth_of_a_mib_a_prompt_is_found_and_noise_is_not_one(seed):
    """The leak's 12 MiB are within what may be grown: it is the slope that finds it, and tells its size."""
    leaking = run_of(seed, leak=0.1)
    (found,) = faults(leaking)
    assert found.startswith("resident set: a slope of ")
    memory = soak_report.trends(leaking)["resident set"]
    assert memory.low < 10 < memory.high and memory.high - memory.low < 3
    assert not faults(run_of(seed, leak=0.0))


def test_what_comes_at_once_is_found_by_the_growth():
    assert any("MiB grown, 32 allowed" in fault for fault in faults(run_of(0, 0.0, step=60.0)))


def test_too_few_prompts_are_no_pass():
    """A dozen do not tell a leak of 0.1 MiB a prompt from none; four have no pair to compare."""
    for leak in (0.0, 0.1):
        (found,) = faults(run_of(3, leak, prompts=12))
        assert "too few prompts, or too much noise" in found
    (found,) = faults(run_of(0, 0.0, prompts=4))
    assert "-inf to +inf" in found


def test_loading_at_the_start_is_no_growth():
    asked = [soak_report.Asked("plain", "a", k, k + 1, min(100 * k, 2000) * soak_report.MIB, 0) for k in range(100)]
    memory = soak_report.trends(asked)["resident set"]
    assert memory.growth == memory.slope == memory.low == memory.high == 0 and not faults(asked)


def test_device_memory_is_judged_where_there_is_a_device():
    asked = [soak_report.Asked("plain", "a", k, k + 1, 0, (1000 + k) * soak_report.MIB) for k in range(100)]
    grown, slope = faults(asked)
    assert grown == "device memory: +60.0 MiB grown, 32 allowed" and slope.startswith("device memory: a slope of +100")


def test_the_slopes_are_within_kinds():
    """Two kinds on levels far apart, a line each; what comes later in only one kind is no slope."""
    first, second = ([(k, level + 0.02 * k) for k in range(start, 60, 2)] for start, level in ((0, 100), (1, 900)))
    groups = [np.array(first), np.array(second[10:])]
    slope, error = trend.least_squares(groups)
    assert slope == pytest.approx(0.02) and error == pytest.approx(0, abs=1e-9)
    assert trend.theil_sen(groups) == pytest.approx((0.02, 0.02, 0.02))


def test_the_least_squares_error_is_that_of_the_textbook():
    x, y = np.arange(10.0), np.array([1.0, 3, 2, 5, 4, 6, 8, 7, 9, 9])
    slope, error = trend.least_squares([np.stack([x, y], 1)])
    (expected, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert (slope, error) == pytest.approx((expected, math.sqrt(covariance[0, 0])))


def test_the_interval_holds_the_slope_as_often_as_it_says():
    """Of many runs with normal noise: nearly always, and not always."""
    draw, numbers = np.random.default_rng(0), np.arange(40)
    held = 0
    for _ in range(300):
        tables = [np.stack([numbers, 0.1 * numbers + draw.normal(0, 3, 40)], 1) for _ in range(3)]
        _, low, high = trend.theil_sen(tables)
        held += low <= 0.1 <= high
    assert 0.91 < held / 300 < 0.99


def test_a_picture_that_changes_is_told_and_counted():
    asked = run_of(0, 0.0)
    asked[150] = soak_report.Asked(asked[150].name, "another", 300.0, 301.0, asked[150].rss, 0)
    assert faults(asked) == ["the pictures changed: plain"]
    assert soak_report.compared(asked) == {"plain": (99, 1), "guided": (97, 0)}
    off = [soak_report.Asked(a.name, "plain", a.start, a.end, a.rss, 0) for a in asked]
    assert len(faults(off)) == 3 and all("the picture of a plain prompt: guided" in fault for fault in faults(off))


def test_the_page_tells_what_was_found(tmp_path, capsys):
    asked = run_of(0, 0.0)
    soak.publish(asked, "ComfyUI 1.2, PyTorch 3.4, a card", soak.options_of(["--page", str(tmp_path / "told.md")]))
    told = (tmp_path / "told.md").read_text(encoding="utf-8")
    memory = soak_report.trends(asked)["resident set"]
    for fact in (
        "Made by `python run.py bench soak`; do not edit.",
        "ComfyUI 1.2, PyTorch 3.4, a card. 200 prompts of the demo's workflow at 128×128 with 6 steps",
        "2 prompts are queued behind the one that runs",
        "it took 500 ms (median). 400 s in all; by medians 1.50 s a plain prompt, 1.50 s a guided prompt.",
        f"| start: median of prompts 41 to 80, MiB | {memory.start:.1f} |",
        f"| growth, MiB | {memory.growth:+.1f} |",
        f"{memory.line:+.2f} ± {memory.error:.2f}",
        "| plain | 99 | 0 |",
        "| guided | 97 | 0 |",
        "**Flat.**",
        "(images/told.png)",
    ):
        assert fact in told
    assert (tmp_path / "images" / "told.png").stat().st_size > 5000
    leaking = soak_report.page(run_of(0, 0.1), "here", soak.options_of([]), "x.png")
    assert "**NOT shown to be flat**: resident set: a slope of" in leaking


@pytest.mark.parametrize("prompts", [199, 200])
def test_a_short_run_writes_no_page(prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "PAGE", tmp_path / "soak.md")
    soak.publish(run_of(0, 0.0, prompts), "here", soak.options_of([]))
    assert (tmp_path / "soak.md").exists() == (prompts == 200)
    assert ("no page: it takes 200 prompts" in capsys.readouterr().out) == (prompts == 199)
