"""Frames of extended XYZ give back what a structure carries."""

import ase.build
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from jaxatoms.data import frames


def test_results_of_the_input_give_way_to_new_ones():
    atoms = ase.build.molecule("H2O")
    atoms.info = {"energy": 1.0, "name": "water"}
    atoms.calc = SinglePointCalculator(atoms, energy=2.0, forces=np.ones((3, 3)))
    ours = frames.with_results(atoms, {"energy": 3.0})
    assert ours.info == {"name": "water"} and ours.calc.results == {"energy": 3.0}
    assert frames.with_results(atoms, {}).calc is None
    assert atoms.info["energy"] == 1.0, "the input is not changed"


def test_what_ase_cannot_write_back_is_written_so_that_it_can(tmp_path):
    rich = ase.build.molecule("H2O")
    rich.info = {"empty": "", "none": None, "lines": "a\nb", "quoted": 'say "x"', "path": "C:\\new", "digits": "007",
                 "nested": {"a": [1, {"b": "c d"}]}, "blank": " ", "after": 3}  # fmt: skip
    rich.new_array("note", np.array(["a b", "", "c"], dtype=object))
    rich.new_array("tensor", np.arange(27.0).reshape(3, 3, 3))
    rich.new_array("velocity", np.ones((3, 3)))
    (tmp_path / "out.extxyz").write_bytes(frames.as_extxyz([rich.copy()]))
    back = ase.io.read(tmp_path / "out.extxyz")
    assert {key: back.info[key] for key in rich.info} == rich.info
    assert list(back.info["note"]) == ["a b", "", "c"]
    np.testing.assert_array_equal(back.info["tensor"], rich.arrays["tensor"])
    np.testing.assert_array_equal(back.arrays["velocity"], rich.arrays["velocity"])
