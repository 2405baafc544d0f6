"""The embedded demo sets: complete, finite, small, and with forces that belong to their energies."""

from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

DEMO = Path(str(files("jaxatoms"))) / "data" / "demo"
MOLECULES = ["organic", "reaction", "aspirin", "peptide", "gap"]
PERIODIC = ["slab", "oxide"]
SETS = MOLECULES + PERIODIC
MAX_BYTES = 6_000_000
PER_ATOM = {
    "atomic_numbers": ("u1", ()),
    "positions": ("f4", (3,)),
    "forces": ("f4", (3,)),
    "tags": ("u1", ()),
    "fixed": ("?", ()),
}
PER_STRUCTURE = {"n_node": ("i4", ()), "energy": ("f8", ()), "group": ("O", ())}
PER_CELL = {"cell": ("f4", (3, 3)), "pbc": ("?", (3,))}


def read(name: str) -> dict[str, np.ndarray]:
    with h5py.File(DEMO / f"{name}.h5") as file:
        return {key: values[...] for key, values in file.items()}


def slices(n_node: np.ndarray) -> list[slice]:
    ends = np.cumsum(n_node)
    return [slice(end - n, end) for end, n in zip(ends.tolist(), n_node.tolist(), strict=True)]


def aligned(positions: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Kabsch rotation R with (positions - mean) @ R closest to (onto - mean)."""
    u, _, vt = np.linalg.svd((positions - positions.mean(0)).T @ (onto - onto.mean(0)))
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    return u @ vt


def energy_differences(name: str, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """(dE, work) between consecutive structures of one group in which no atom moves further than `reach`.

    The work is the mean force times the displacement, exact on a harmonic surface whatever the distance.
    Molecules are first turned onto each other, their forces with them.
    """
    data = read(name)
    cuts = slices(data["n_node"])
    differences, work = [], []
    for i, (a, b) in enumerate(pairwise(cuts)):
        if data["group"][i] != data["group"][i + 1]:
            continue
        if not np.array_equal(data["atomic_numbers"][a], data["atomic_numbers"][b]):
            continue
        first, second = (data["positions"][s].astype(np.float64) for s in (a, b))
        force_first, force_second = (data["forces"][s].astype(np.float64) for s in (a, b))
        if name in PERIODIC:
            if not np.array_equal(data["cell"][i], data["cell"][i + 1]):
                continue  # straining does work of its own
        else:
            turn = aligned(second, first)
            second, force_second = (second - second.mean(0)) @ turn, force_second @ turn
            first = first - first.mean(0)
        step = second - first
        if np.linalg.norm(step, axis=1).max() > reach:
            continue  # another isomer, or far from harmonic
        differences.append(data["energy"][i + 1] - data["energy"][i])
        work.append(-0.5 * ((force_first + force_second) * step).sum())
    return np.array(differences), np.array(work)


def test_all_sets_fit_in_the_package():
    paths = sorted(DEMO.glob("*.h5"))
    assert [path.stem for path in paths] == sorted(SETS)
    assert sum(path.stat().st_size for path in paths) <= MAX_BYTES


@pytest.mark.parametrize("name", SETS)
def test_layout(name):
    data = read(name)
    n_graph, n_atoms = len(data["n_node"]), int(data["n_node"].sum())
    expected = {key: (n_atoms, spec) for key, spec in PER_ATOM.items()}
    expected |= {key: (n_graph, spec) for key, spec in PER_STRUCTURE.items()}
    if name in PERIODIC:
        expected |= {key: (n_graph, spec) for key, spec in PER_CELL.items()}
    expected |= {key: (n_graph, ("f8", ())) for key in data if key.startswith("target_")}
    assert set(data) == set(expected)
    for key, (length, (dtype, tail)) in expected.items():
        assert data[key].dtype == np.dtype(dtype), key
        assert data[key].shape == (length, *tail), key
    assert n_graph >= 350
    assert data["n_node"].min() >= 2
    assert data["atomic_numbers"].min() >= 1


@pytest.mark.parametrize("name", SETS)
def test_provenance(name):
    with h5py.File(DEMO / f"{name}.h5") as file:
        description, level = file.attrs["description"], file.attrs["level_of_theory"]
    assert description and ("wB97X" if name == "organic" else "xTB") in level
    assert "ANI-1x" not in description + level  # these sets must never pass for the published one


@pytest.mark.parametrize("name", SETS)
def test_labels_are_finite_and_moderate(name):
    data = read(name)
    for key, values in data.items():
        if values.dtype.kind == "f":
            assert np.isfinite(values).all(), key
    assert np.abs(data["forces"]).max() <= 30.0
    assert data["forces"].std() > 1e-3
    assert all(data["group"])


@pytest.mark.parametrize("name", SETS)
def test_atoms_do_not_overlap(name):
    data = read(name)
    for cut in slices(data["n_node"]):
        positions = data["positions"][cut]
        distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        assert distances[np.triu_indices(len(positions), 1)].min() > 0.5


@pytest.mark.parametrize("name", SETS)
def test_forces_sum_to_zero(name):
    # The integration grid of the DFT labels breaks translation invariance slightly.
    tolerance = 0.05 if name == "organic" else 1e-3
    data = read(name)
    starts = np.cumsum(data["n_node"]) - data["n_node"]
    total = np.add.reduceat(data["forces"].astype(np.float64), starts)
    assert np.abs(total).max() < tolerance


# The reach (A) within which each surface is harmonic enough; wrong signs or units fail by far.
@pytest.mark.parametrize(
    ("name", "reach"),
    [("organic", 0.3), ("reaction", 0.3), ("aspirin", 0.5), ("peptide", 0.5), ("slab", 0.3), ("oxide", 0.3)],
)
def test_energy_differences_follow_the_forces(name, reach):
    differences, work = energy_differences(name, reach)
    assert len(differences) > 100
    assert np.corrcoef(differences, work)[0, 1] > 0.95
    assert abs((differences @ work) / (work @ work) - 1) < 0.1


def test_gap_is_a_gap():
    gap = read("gap")["target_gap"]
    assert gap.min() > 0.0
    assert gap.max() < 20.0
    assert gap.std() > 0.3


def test_groups_of_gap_are_molecules():
    groups = read("gap")["group"]
    assert len(set(groups)) == len(groups)


def test_slab_marks_layers_and_fixed_atoms():
    data = read("slab")
    assert set(np.unique(data["tags"])) == {0, 1, 2}
    assert (data["tags"][data["fixed"]] == 0).all()
    assert np.abs(data["forces"][data["fixed"]]).max() > 0.01  # labels are complete, constraints lifted
    assert data["pbc"].all()
    for cut in slices(data["n_node"]):
        height, tags = data["positions"][cut][:, 2], data["tags"][cut]
        assert height[data["fixed"][cut]].max() < height[tags == 1].min()
        assert height[tags == 1].mean() < height[tags == 2].mean()


@pytest.mark.parametrize("name", [name for name in SETS if name != "slab"])
def test_elsewhere_all_atoms_count_alike_and_move(name):
    data = read(name)
    assert (data["tags"] == 2).all()
    assert not data["fixed"].any()
