"""What all trainings share: budget, rate, average, state, whole files; against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from omniportrait.training.files import digest_of, whole, write_whole
from omniportrait.training.loop import Average, Budget, descend, learning_rate, load_state, save_state
from omniportrait.training.trainer import save_newest, states


def after(budget: Budget, *seconds: float) -> Budget:
    for each in seconds:
        budget.tick(each)
    return budget


def test_budget_ends_by_what_comes_first():
    assert after(Budget(minutes=1, steps=10), 1, 1).share == pytest.approx(0.2)
    assert after(Budget(minutes=1, steps=10), 20, 40).done
    assert after(Budget(steps=2), 500, 500).done and not after(Budget(steps=3), 500, 500).done
    assert after(Budget(minutes=2), 30).share == pytest.approx(0.25)


def test_pause_counts_this_piece_alone():
    for budget in (Budget(steps=9, pause=2), Budget(minutes=9, pause=0.5)):
        after(budget, 20, 20).start()
        assert not after(budget, 20).paused and after(budget, 20).paused and not budget.done


def test_learning_rate_by_hand():
    assert learning_rate(0.0, 0, 8.0, warmup=4) == 2.0 and learning_rate(0.0, 3, 8.0, warmup=4) == 8.0
    assert learning_rate(1.0, 9, 8.0, warmup=4, least=0.25) == pytest.approx(2.0)
    assert learning_rate(0.5, 9, 8.0, warmup=4, least=0.5) == pytest.approx(6.0)
    assert learning_rate(0.7, 9, 8.0, warmup=0, least=1.0) == 8.0


def test_descend_is_one_clipped_step():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=99.0)
    descend((weight**2).sum() / 2, optimizer, rate=0.5, clip=1.0)  # the gradient (3, 4) has norm 5
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0 - 0.3, 4.0 - 0.4]))
    descend((weight * torch.tensor([3.0, 4.0])).sum(), optimizer, rate=0.1, clip=math.inf)
    torch.testing.assert_close(weight.detach(), torch.tensor([2.4, 3.2]))


def test_average_is_short_at_first():
    weight = torch.nn.Parameter(torch.zeros(1))
    average, expected = Average([weight], 0.5), 0.0
    for step in range(12):
        weight.data.fill_(step + 1.0)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
    assert float(average.values[0]) == pytest.approx(expected)
    with average.used():
        assert weight.item() == pytest.approx(expected)
    assert weight.item() == 12.0 and Average([weight], 0.0).values == []


def test_state_goes_on_under_its_own_terms_alone(tmp_path):
    weight = torch.nn.Linear(2, 1)
    saved = {"model": weight, "clock": after(Budget(steps=5), 2.5), "average": Average(weight.parameters(), 0.9)}
    save_state(tmp_path / "a.pt", saved, {"seed": 3})
    other = torch.nn.Linear(2, 1)
    found = {"model": other, "clock": Budget(steps=9), "average": Average(other.parameters(), 0.9)}
    load_state(tmp_path / "a.pt", found, {"seed": 3, "new": 1}, "stop")
    assert torch.equal(other.weight, weight.weight) and torch.equal(found["average"].values[0], weight.weight)
    assert (found["clock"].step, found["clock"].spent) == (1, 2.5)
    with pytest.raises(ValueError, match="begun with seed 3, but is to go on with 4: give what it had, or stop."):
        load_state(tmp_path / "a.pt", found, {"seed": 4}, "stop")
    with pytest.raises(ValueError, match="does not fit"):
        load_state(tmp_path / "a.pt", {"model": torch.nn.Linear(3, 1)}, {}, "stop")


def test_next_state_sweeps_up_what_a_killed_process_left(tmp_path):
    save_newest(tmp_path, 1, {}, {}, keep=2)
    (tmp_path / "states" / ".000000002.pt.77.part").write_bytes(b"half a state")
    for step in (3, 5):
        save_newest(tmp_path, step, {"clock": Budget(steps=9, step=step)}, {}, keep=2)
    assert sorted((tmp_path / "states").iterdir()) == states(tmp_path)
    assert [path.name for path in states(tmp_path)] == ["000000003.pt", "000000005.pt"]


def test_files_are_whole_or_as_before(tmp_path):
    path = tmp_path / "new" / "file"
    write_whole(path, b"one")
    before = digest_of(path)
    with pytest.raises(KeyboardInterrupt), whole(path) as part:
        part.write_bytes(b"two, cut sh")
        raise KeyboardInterrupt
    with whole(path):
        pass  # nothing was written
    assert path.read_bytes() == b"one" and digest_of(path) == before and list(path.parent.iterdir()) == [path]
    write_whole(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two" and digest_of(path) != before
