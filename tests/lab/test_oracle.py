"""The oracle word as a row of the ablation: where it is added, and what it is."""

from __future__ import annotations

from pathlib import Path

import torch
from omniportrait.lab.bench import ablation
from omniportrait.lab.bench.oracle import Oracle
from omniportrait.lab.learning.words import Words, known, shape_size
from omniportrait.lab.world.shards import HELD_OUT
from omniportrait.models.faces import FaceReference
from omniportrait.sampling.record import RECORDS_KEY, IdentityRecord


def test_the_oracle_word_stands_where_a_pivot_would(tmp_path):
    words = Words(shape_size())
    words.fit(*known(range(12)))
    words.lay(torch.randn(2, 77, 128, generator=torch.Generator().manual_seed(0)))
    torch.save({"words": words.state_dict()}, tmp_path / "words.state.pt")
    oracle = Oracle(tmp_path / "words.state.pt")
    expected = words(words.descriptions(*known([HELD_OUT + 3])))[0]
    torch.testing.assert_close(oracle.word(3), expected)
    assert float((oracle.word(3) - oracle.word(4)).norm()) > 0.1  # people differ

    states, reference = torch.randn(1, 77, 128), torch.randn(1, 77, 128)
    face = FaceReference(torch.rand(1, 64, 64, 3), None, (0.0, 0.0, 64.0, 64.0), "test")
    record = IdentityRecord("a woman", "woman", 0, 2, 77, face, None, [[reference, {}]], 4)
    ((said, options),) = oracle.said([[states, {RECORDS_KEY: (record,), "other": 1}]], 3)
    torch.testing.assert_close(said[0, 2] - states[0, 2], expected, atol=1e-5, rtol=0)
    assert torch.equal(said[:, 3:], states[:, 3:]) and options["other"] == 1
    changed = options[RECORDS_KEY][0].reference_conditioning[0][0]
    torch.testing.assert_close(changed[0, 4] - reference[0, 4], expected, atol=1e-5, rtol=0)
    assert torch.equal(changed[:, :4], reference[:, :4]) and not torch.equal(changed, reference)


def test_rows_with_the_oracle_word_are_asked_for_by_its_file():
    rows = {row.name: row for row in ablation.variants(ablation.parser().parse_args(["--words", "told.state.pt"]))}
    assert rows[ablation.ORACLE].words == Path("told.state.pt") and rows[ablation.ORACLE].encoder is None
    assert rows[ablation.ORACLE_ATTENTION].off.words == Path("told.state.pt")
    assert ablation.ORACLE not in {row.name for row in ablation.variants(ablation.parser().parse_args([]))}
