"""The enumerated GemNet-OC against golden vectors (and docs/reference/gemnet_oc.md, Reference values)."""

import importlib.util
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from .gemnet_oc_enumerated import NAMES, forward, heads

TOLERANCE = 1e-9  # largest difference over largest reference value
# index columns of every list, in the order it is sorted by, and the values that go with it
LISTS = {
    "trip/e2e": (("out", "in"), ("cos", "circular")),
    "trip/a2e": (("out", "in"), ()),
    "trip/e2a": (("out", "in"), ()),
    "quad/abd": (("edge_ba", "edge_db"), ("cos", "cbf")),
    "quad/cab": (("edge_ba", "edge_ca"), ()),
    "quad": (("edge_ca", "edge_ba", "edge_db"), ("cos_cab", "dihedral")),
}
DENSE = ("basis/", "emb/", "block", "out0", "out1", "out2", "out3", "out4", "feature/")


def _golden_folder():
    data = os.environ.get("JAXATOMS_DATA")
    if not data:
        pytest.skip("JAXATOMS_DATA is not set")
    folder = Path(data).parent / "golden" / "gemnet_oc"
    if not folder.is_dir():
        pytest.skip("no golden vectors beside $JAXATOMS_DATA")
    return folder


def _golden(name):
    path = _golden_folder() / name
    if not path.is_file():
        pytest.skip(f"no {name} among the golden vectors")
    with np.load(path) as f:
        return {k: f[k] for k in f.files}


def _weights(gold):
    return {k.removeprefix("param/"): v for k, v in gold.items() if k.startswith("param/")}


def _graphs(gold):
    graphs = {g: (gold[f"graph/{g}/edge_index"], gold[f"graph/{g}/cell_offset"]) for g in NAMES}
    graphs["id_swap"] = gold["graph/main/id_swap"]
    return graphs


def _run(gold, params, positions=None):
    positions = gold["input/positions"] if positions is None else positions
    args = (gold["input/atomic_numbers"], positions, gold["input/cell"], gold["input/batch"])
    return forward(params, *args, _graphs(gold))


def _error(x, reference):
    assert x.shape == reference.shape
    assert np.all(np.isfinite(x))
    return np.max(np.abs(x - reference)) / max(np.max(np.abs(reference)), 1e-300)


def _assert_close(out, gold, keys):
    errors = {k: _error(out[k], gold[k]) for k in keys}
    bad = {k: e for k, e in errors.items() if not e < TOLERANCE}
    assert errors
    assert not bad, bad


@pytest.fixture(scope="module", params=["tiny.npz", "tiny_gradient.npz", "tiny_gradient_linear.npz"])
def case(request):
    gold = _golden(request.param)
    params = _weights(gold)
    return gold, params, _run(gold, params)


def test_edges(case):
    gold, _, out = case
    for g in NAMES:
        _assert_close(out, gold, [f"graph/{g}/distance", f"graph/{g}/vector"])
    (source, target), offset = _graphs(gold)["main"]
    swap = gold["graph/main/id_swap"]
    assert np.array_equal(source[swap], target)
    assert np.array_equal(offset[swap], -offset)


@pytest.mark.parametrize("name", LISTS)
def test_index_lists(case, name):
    gold, _, out = case
    columns, values = LISTS[name]
    index = {}
    for label, arrays in (("twin", out), ("gold", gold)):
        keys = [arrays[f"{name}/{c}"] for c in columns]
        order = np.lexsort(keys[::-1])
        index[label] = (np.stack(keys)[:, order].astype(np.int64), order)
    assert np.array_equal(index["twin"][0], index["gold"][0])
    for v in values:
        key = f"{name}/{v}"
        assert _error(out[key][index["twin"][1]], gold[key][index["gold"][1]]) < TOLERANCE, key


def test_counts_per_structure(case):
    gold, _, out = case
    n_graph = len(gold["input/natoms"])
    ends = {g: gold["input/batch"][gold[f"graph/{g}/edge_index"][1]] for g in NAMES}
    lists = {
        "trip_e2e": ("trip/e2e/out", "main"),
        "trip_a2e": ("trip/a2e/out", "main"),
        "trip_e2a": ("trip/e2a/out", "a2ee2a"),
        "quad_trip_in": ("quad/abd/edge_ba", "qint"),
        "quad_trip_out": ("quad/cab/edge_ba", "qint"),
        "quads": ("quad/edge_ca", "main"),
    }
    for name, (key, graph) in lists.items():
        count = np.bincount(ends[graph][out[key]], minlength=n_graph)
        assert np.array_equal(count, gold[f"count/{name}"]), name


def test_layers(case):
    gold, _, out = case
    keys = [k for k in gold if k.startswith(DENSE)]
    assert {f"block{i}/{x}" for i in range(2) for x in ("h", "m", "quad_interaction")} <= set(keys)
    _assert_close(out, gold, keys)


def test_heads(case):
    gold, params, out = case
    if "reductions" in (config := json.loads(str(gold["config"]))):
        for task, reduction in enumerate(config["reductions"]):
            energy, forces = heads(params, out, task, reduction)
            assert _error(energy, gold["output/energy"][:, task]) < TOLERANCE
            assert _error(forces, gold["output/forces"][:, :, task]) < TOLERANCE
    else:
        energy, forces = heads(params, out, None)
        assert forces is None
        assert _error(energy, gold["output/energy"]) < TOLERANCE


def test_gradient_forces_by_finite_differences():
    gold = _golden("tiny_gradient.npz")
    params = _weights(gold)
    step, (atom, axis) = 1e-4, (3, 1)
    energy = []
    for k in (-2, -1, 1, 2):
        positions = gold["input/positions"].copy()
        positions[atom, axis] += k * step
        energy.append(heads(params, _run(gold, params, positions), None)[0].sum())
    slope = (energy[0] - 8 * energy[1] + 8 * energy[2] - energy[3]) / (12 * step)
    assert abs(-slope - gold["output/forces"][atom, axis]) < 1e-7 * np.abs(gold["output/forces"]).max()


def test_no_quadruplets_gives_zeros():
    """Water alone: the reference fails there; the interaction must vanish."""
    params = _weights(_golden("tiny.npz"))
    z = np.array([8, 1, 1])
    positions = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    out = forward(params, z, positions, np.zeros((1, 3, 3)), np.zeros(3, dtype=int), all_pairs(3))
    assert len(out["quad/edge_ca"]) == 0
    assert not np.any(out["block0/quad_interaction"])
    assert np.all(np.isfinite(out["feature/node"]))


# ------------------------------------------------------------------------- dimensions of the S variant


def test_small_dimensions():
    gold = _golden("small_S.npz")
    spec = importlib.util.spec_from_file_location("golden_recipe", _golden_folder() / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = json.loads(str(gold["config"]))
    params = _weights(gold)
    for name, shape in _shapes(gold):
        params[name] = recipe.weight(config["seed"], name, shape)
    out = _run(gold, params)
    keys = [k for k in gold if k.startswith(DENSE)]
    for k in keys:
        base, _, suffix = k.rpartition("_")
        if suffix == "mean":
            out[k] = out[base].mean(axis=-1)
        elif suffix == "norm":
            out[k] = np.linalg.norm(out[base], axis=-1)
    _assert_close(out, gold, keys)
    energy, forces = heads(params, out, 0, config["reductions"][0])
    assert _error(energy, gold["output/energy"][:, 0]) < TOLERANCE
    assert _error(forces, gold["output/forces"][:, :, 0]) < TOLERANCE


def all_pairs(n_atom):
    """The four graphs of one molecule small enough that no neighbour limit acts: all are equal."""
    source, target = np.nonzero(~np.eye(n_atom, dtype=bool))
    swap = np.array([np.flatnonzero((source == t) & (target == s))[0] for s, t in zip(source, target, strict=True)])
    edges = (np.stack([source, target]), np.zeros((len(source), 3), dtype=int))
    return dict.fromkeys(NAMES, edges) | {"id_swap": swap}


def _shapes(gold):
    for row in gold["check/param_names"]:
        name, shape = str(row).split("|")
        yield name, tuple(int(n) for n in shape.split("x"))


def _lowbias32(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x ^ (x >> np.uint32(shift))
        x = x * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def _hashed_weight(name, shape):
    """Weights of docs/reference/gemnet_oc.md, Reference values."""
    flat = np.arange(np.prod(shape), dtype=np.uint32)
    u = _lowbias32(flat * np.uint32(0x9E3779B9) + np.uint32(zlib.crc32(name.encode()))) / 2.0**32
    w = (2.0 * u - 1.0).reshape(shape)
    if name.endswith("atom_embedding.weight"):
        return np.sqrt(3.0) * w
    if len(shape) == 1:
        return 0.1 * w
    axes = (0, 1) if len(shape) == 3 else (1,)
    fan_in = shape[0] * shape[1] if len(shape) == 3 else shape[1]
    centred = w - w.mean(axis=axes, keepdims=True)
    return centred / w.std(axis=axes, ddof=1, keepdims=True) / np.sqrt(fan_in)


_MOL_Z = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
_MOL_POSITIONS = np.array(
    [
        [1.165, -0.402, 0.031],
        [-0.012, 0.553, -0.024],
        [-1.192, -0.219, 0.042],
        [-1.951, 0.371, -0.083],
        [2.108, 0.149, -0.052],
        [1.121, -1.071, 0.914],
        [1.147, -1.029, -0.903],
        [0.043, 1.203, 0.868],
        [0.029, 1.162, -0.941],
    ]
)
_MOL_RMS = [  # h, m, x_E, x_F at output block 0 .. 4
    [0.9904123846, 0.8777946067, 0.6155446514, 0.6748023460],
    [0.3651685576, 0.5740550879, 0.1712635102, 0.3538958793],
    [0.1211298352, 0.2763756975, 0.05596625884, 0.1714919216],
    [0.04176848747, 0.1186117741, 0.02031830727, 0.07669265067],
    [0.01455890006, 0.04792592810, 0.006815682868, 0.03231284613],
]


def _float32_centres(n):
    """PyTorch's float32 linspace(0, 1, n): float32 step, counted from the nearer end.

    It differs from the rounded float64 linspace by up to 6e-8, which shows (4e-8 in the bases, 8e-7 in F).
    """
    k, one = np.arange(n, dtype=np.float32), np.float32(1.0)
    step = one / np.float32(n - 1)
    return np.where(k < n // 2, step * k, one - step * (n - 1 - k)).astype(np.float64)


def test_specified_molecule():
    """Against docs/reference/gemnet_oc.md, Reference values, printed with 10 to 13 digits."""
    gold = _golden("small_S.npz")  # names, shapes and the shipped scale factors only
    params = _weights(gold)
    for name, shape in _shapes(gold):
        params[name] = _hashed_weight(name, shape)
    centres = _float32_centres(128)
    batch = np.zeros(len(_MOL_Z), dtype=int)
    graphs = all_pairs(len(_MOL_Z))
    out = forward(params, _MOL_Z, _MOL_POSITIONS, np.zeros((1, 3, 3)), batch, graphs, centres)

    def rms(x):
        return np.sqrt(np.mean(x**2))

    assert len(out["quad/edge_ca"]) == 3024
    assert np.sum(out["trip/e2e/circular"] ** 2) == pytest.approx(314.6778703805, rel=1e-11)
    assert np.sum(out["trip/e2a/circular"] ** 2) == pytest.approx(314.6778703805, rel=1e-11)
    assert np.sum(out["quad/spherical"] ** 2) == pytest.approx(1884.426271407, rel=1e-11)
    assert rms(out["quad/abd/cbf"]) == pytest.approx(0.0365243429615, rel=1e-11)
    assert rms(out["basis/sbf"]) == pytest.approx(0.0167323472083, rel=1e-11)
    for i, row in enumerate(_MOL_RMS):
        before = ("emb/h", "emb/m") if i == 0 else (f"block{i - 1}/h", f"block{i - 1}/m")
        keys = (*before, f"out{i}/x_E", f"out{i}/x_F")
        assert [rms(out[k]) for k in keys] == pytest.approx(row, rel=1e-9), i
    assert rms(out["feature/node"]) == pytest.approx(0.1737684891, rel=1e-9)
    assert rms(out["feature/edge"]) == pytest.approx(0.2339427448, rel=1e-9)
    energy, forces = heads(params, out, 0)
    assert energy == pytest.approx([0.1647412872], rel=1e-9)
    assert forces[0] == pytest.approx([0.3272111858, -0.4769861621, 0.01163959979], rel=1e-9)
