"""Pure-torch stand-ins for the few functions of torch_scatter, torch_sparse and torch_cluster that the peer calls.

Used only where those compiled packages are not installed: `install` registers modules under their names.
"""

import sys
import types

import torch


def scatter(src, index, dim=-1, out=None, dim_size=None, reduce="sum"):
    """Sums or means of the rows of `src` along `dim` that share an entry of `index` [n]; only `out=None`."""
    if out is not None or index.dim() != 1 or reduce not in ("sum", "add", "mean"):
        raise NotImplementedError(f"scatter with {out=}, {index.dim()=}, {reduce=}")
    size = int(dim_size) if dim_size is not None else int(index.max()) + 1
    shape = list(src.shape)
    shape[dim] = size
    sums = src.new_zeros(shape).index_add(dim, index, src)
    if reduce != "mean":
        return sums
    counts = torch.bincount(index, minlength=size).clamp(min=1)
    column = [1] * src.dim()
    column[dim] = size
    return sums / counts.view(column)


def segment_coo(src, index, out=None, dim_size=None, reduce="sum"):
    """`scatter` along the first dimension; that `index` is sorted is not used."""
    return scatter(src, index, 0, out, dim_size, reduce)


def segment_csr(src, indptr, out=None, reduce="sum"):
    """Sums of `src[indptr[i] : indptr[i + 1]]`."""
    n = len(indptr) - 1
    index = torch.repeat_interleave(torch.arange(n, device=src.device), indptr.diff())
    return scatter(src[indptr[0] : indptr[-1]], index, 0, out, n, reduce)


class SparseTensor:
    """Entries (row, col, value) sorted by row and column; several entries may share a place."""

    def __init__(self, row, col, value, sparse_sizes):
        order = torch.argsort(row * sparse_sizes[1] + col, stable=True)
        self._fill(row[order], col[order], value[order], sparse_sizes)

    def _fill(self, row, col, value, sizes):
        self._entries, self._sizes = [row, col, value], sizes

    @property
    def storage(self):
        """Holder of `row()`, `col()` and `value()`: the tensor itself."""
        return self

    def row(self):
        return self._entries[0]

    def col(self):
        return self._entries[1]

    def value(self):
        return self._entries[2]

    def coo(self):
        return tuple(self._entries)

    def sparse_sizes(self):
        return self._sizes

    def set_value_(self, value, layout):
        """Replace the values, given in the order of the entries."""
        if layout != "coo":
            raise NotImplementedError(f"{layout=}")
        self._entries[2] = value
        return self

    def __getitem__(self, rows):
        """The tensor whose row i is row `rows[i]` of this one."""
        row, col, value = self._entries
        count = torch.bincount(row, minlength=int(self._sizes[0]))
        first = count.cumsum(0) - count
        new_row = torch.repeat_interleave(torch.arange(len(rows), device=row.device), count[rows])
        new_first = count[rows].cumsum(0) - count[rows]
        entry = first[rows][new_row] + torch.arange(len(new_row), device=row.device) - new_first[new_row]
        out = SparseTensor.__new__(SparseTensor)
        out._fill(new_row, col[entry], value[entry], (len(rows), self._sizes[1]))
        return out


@torch.no_grad()
def radius_graph(x, r, batch, max_num_neighbors=32):
    """Edges [2, n_edge] (sender, receiver) shorter than `r` inside each structure, sorted by receiver, then sender.

    Every pair of a structure is looked at. The first `max_num_neighbors` senders are kept, as the original does.
    """
    size = torch.bincount(batch)
    first = size.cumsum(0) - size
    per_atom = size[batch]
    receiver = torch.repeat_interleave(torch.arange(len(x), device=x.device), per_atom)
    begin = per_atom.cumsum(0) - per_atom
    sender = torch.arange(len(receiver), device=x.device) - begin[receiver] + first[batch][receiver]
    near = ((x[sender] - x[receiver]).norm(dim=1) < r) & (sender != receiver)
    sender, receiver = sender[near], receiver[near]
    degree = torch.bincount(receiver, minlength=len(x))
    rank = torch.arange(len(receiver), device=x.device) - (degree.cumsum(0) - degree)[receiver]
    return torch.stack([sender, receiver])[:, rank < max_num_neighbors]


STAND_INS = {
    "torch_scatter": {"scatter": scatter, "segment_coo": segment_coo, "segment_csr": segment_csr},
    "torch_sparse": {"SparseTensor": SparseTensor},
    "torch_cluster": {"radius_graph": radius_graph},
}


def install() -> str:
    """Make the three packages importable; says which are used: "compiled", or "torch: NAMES" for stand-ins."""
    missing = []
    for name, functions in STAND_INS.items():
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__dict__.update(functions, __version__="stand-in")
            missing.append(name)
    return f"torch: {' '.join(missing)}" if missing else "compiled"
