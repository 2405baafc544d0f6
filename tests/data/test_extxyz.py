"""Comment lines with empty values, which ASE's parser lets swallow the next key."""

import numpy as np
import pytest
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

from jaxatoms.data.readers.extxyz import parse_comment, writable_info


@pytest.mark.parametrize("empty", ['name=""', "name=", "name=''", 'name= ""', "name={}"])
def test_an_empty_value_swallows_nothing(empty):
    for line in (f'{empty} energy=-1.5 pbc="F F F"', f'pbc="F F F" energy=-1.5 {empty}'):
        found = parse_comment(line)
        assert (found["name"], found["energy"]) == ("", -1.5)
        assert list(found["pbc"]) == [False] * 3


@pytest.mark.parametrize(
    "line",
    [
        'Lattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3 energy=-1 pbc="T T F"',
        " i =        0, time =        0.000, E =     -17.1664674554",
        'note="a= b=1 c=" x="say \\"y=\\" z" d="_JSON {\\"a\\": \\"\\"}" flag done',
        "a=b=c t=[1 2] 'with space'=1",
    ],
)
def test_other_lines_read_as_ase_reads_them(line):
    ours, theirs = parse_comment(line), key_val_str_to_dict(line)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_written_values_come_back():
    info = {"a": "", "b": None, "c": "x y", "d": "1.0", "e": "T", "f": "back\\slash", "g": [1, "two"], "h": 2.5}
    assert key_val_str_to_dict(key_val_dict_to_str(writable_info(info))) == info
