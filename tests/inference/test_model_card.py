"""Model cards say what a head predicts, and which of its energies can be trusted."""

import pytest

from jaxatoms.data.task_record import TaskRecord
from jaxatoms.inference.checkpoint_meta import CheckpointMeta
from jaxatoms.inference.model_card import card_text, energies_of, make_card

HEAD = {"name": "own", "energy_std": 0.5, "force_std": None, "cutoff": 8.0, "max_neighbors": 30, "reference": {"1": 0}}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "of all compositions"),
        ({"span": [[1.0]]}, "combinations of the training compositions"),
        ({"energy_zero": "unknown"}, "up to a constant"),
        ({"labels": ["forces"]}, "not learnt"),
    ],
)
def test_a_card_says_which_energies_a_head_gives(record, words):
    task = TaskRecord.from_json(HEAD | record, "here")
    assert words in energies_of(task)
    text = card_text(make_card(CheckpointMeta(model={}, tasks=(task,))))
    (row,) = (line for line in text.splitlines() if line.startswith("| own |"))
    assert words in row and "| 0.5 | - | 8 | 30 |" in row
