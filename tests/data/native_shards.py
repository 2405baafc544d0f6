"""LMDB shards as the projects publish them, written without torch: stand-ins pickle under torch's own names."""

import collections
import contextlib
import io
import pickle
import sys
import types

import lmdb
import native
import numpy as np

_STORAGE = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage", "b1": "BoolStorage"}


class Tensor:
    """Pickles as torch pickles a tensor: a view of a storage that is itself a small torch file."""

    def __init__(self, values):
        self.values = np.ascontiguousarray(values)

    def __reduce__(self):
        values = self.values
        strides = tuple(s // values.itemsize for s in values.strides)
        arguments = (_Storage(values), 0, values.shape, strides, False, collections.OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class _Storage:
    def __init__(self, values):
        self.values = values

    def __reduce__(self):
        return sys.modules["torch.storage"]._load_from_bytes, (_legacy_file(self.values),)


class _StoragePickler(pickle.Pickler):
    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        kind = getattr(sys.modules["torch"], _STORAGE[value.values.dtype.str[1:]])
        return ("storage", kind, "94000", "cpu", value.values.size, None)


def _legacy_file(values):
    file = io.BytesIO()
    for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
        pickle.dump(head, file, 2)
    _StoragePickler(file, 2).dump(_Storage(values))
    pickle.dump(["94000"], file, 2)
    return file.getvalue() + np.array([values.size], "<i8").tobytes() + values.tobytes()


@contextlib.contextmanager
def fake_torch():
    """Modules under torch's names for as long as something is pickled."""
    names = ("torch", "torch._utils", "torch.storage", "torch_geometric", "torch_geometric.data",
             "torch_geometric.data.data", "torch_geometric.data.storage")  # fmt: skip
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("torch.storage", "_load_from_bytes"),
                         *(("torch", kind) for kind in _STORAGE.values()),
                         ("torch_geometric.data.data", "Data"),
                         ("torch_geometric.data.storage", "GlobalStorage")):  # fmt: skip
        stand = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, stand)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = module


def oc_record(seed=0, form="old", **changes):
    """The pickle of one S2EF record; `changes` replace or (None) remove values."""
    atoms = native.slab(seed)
    fixed = np.zeros(len(atoms), "f4")
    fixed[atoms.constraints[0].index] = 1
    values = {
        "pos": Tensor(atoms.positions.astype("f4")),
        "cell": Tensor(atoms.cell.array.astype("f4")[None]),
        "atomic_numbers": Tensor(atoms.numbers.astype("f4")),
        "natoms": len(atoms),
        "fixed": Tensor(fixed),
        "tags": Tensor(atoms.get_tags().astype("i8")),
        "sid": 100 + seed // 2,
        "fid": seed,
        "y": atoms.calc.results["energy"],
        "force": Tensor(atoms.calc.results["forces"].astype("f4")),
    }
    values = {name: value for name, value in (values | changes).items() if value is not None}
    with fake_torch():
        record = sys.modules["torch_geometric.data.data"].Data()
        if form == "old":
            record.__dict__.update(values)
        else:
            store = sys.modules["torch_geometric.data.storage"].GlobalStorage()
            store.__dict__.update(_mapping=values, _parent=record)
            record.__dict__["_store"] = store
        return pickle.dumps(record, -1)


def write_lmdb(path, items):
    """An LMDB file of these (key, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), subdir=False, map_size=1 << 26, lock=False) as env, env.begin(write=True) as transaction:
        for key, value in items:
            transaction.put(str(key).encode(), value)
    return path


def write_oc_shards(folder, n_shard=2, n_record=3, form="old", **changes):
    """`data.NNNN.lmdb` shards; `changes` apply to the last record of all."""
    for k in range(n_shard):
        last = k == n_shard - 1
        records = [
            oc_record(10 * k + i, form, **(changes if last and i == n_record - 1 else {})) for i in range(n_record)
        ]
        items = [*enumerate(records), ("length", pickle.dumps(n_record, -1))]
        write_lmdb(folder / f"data.{k:04d}.lmdb", items)
    return folder
