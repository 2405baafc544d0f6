"""Properties of structures and of atoms stand in two arrays, in their order."""

from jaxatoms.graphs.properties import places, widths


def test_every_property_has_columns_of_its_own():
    reductions = ["sum", "atom", "dipole", "mean", "atom"]
    found = places(reductions)
    assert [(place.per_atom, place.columns.start, place.columns.stop) for place in found] == [
        (False, 0, 1), (True, 0, 1), (False, 1, 4), (False, 4, 5), (True, 1, 2),
    ]  # fmt: skip
    assert widths(reductions) == (5, 2)
    assert widths(["atom"]) == (0, 1) and widths(["dipole", "dipole"]) == (6, 0)
