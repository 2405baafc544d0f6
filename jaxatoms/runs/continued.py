"""Pretraining that goes on from a checkpoint: its weights, new heads for new data sets, rows for new elements."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols

from jaxatoms.inference.checkpoint_meta import read_checkpoint_meta
from jaxatoms.models.architecture import Config, ElementTables
from jaxatoms.models.registry import PureModel, architecture_of
from jaxatoms.runs.start import named_arrays
from jaxatoms.training.partial import parameter_names
from jaxatoms.types import InputError

_HEAD = re.compile(r"output/(out_energy|out_forces)/(\d+)/")


@dataclasses.dataclass(frozen=True)
class Continued:
    """A checkpoint that pretraining starts from.

    Attributes:
      path: its folder.
      names: of the data sets of the new run, in the order of its heads.
      elements: [121] bool, those of the new run.
    """

    path: Path
    names: Sequence[str]
    elements: np.ndarray

    def fill(self, model: PureModel, config: Config, notify: Callable[[str], None]) -> PureModel:
        """`model` with the averaged weights and the constants of the checkpoint; heads of other data sets stay new.

        Raises:
          InputError: the checkpoint lacks a weight, or has it in another shape.
        """
        meta = read_checkpoint_meta(self.path)
        heads = {} if meta.head is not None else {task.name: i for i, task in enumerate(meta.tasks)}
        kept = {i: heads[name] for i, name in enumerate(self.names) if name in heads}
        tables = architecture_of(config).element_tables
        source, constants = named_arrays(self.path, "ema"), named_arrays(self.path, "constants")
        seen = np.logical_or.reduce([task.reference.seen for task in meta.tasks] or [np.zeros_like(self.elements)])
        new = self.elements & ~seen if seen.any() else np.zeros_like(seen)  # converted weights may not say
        leaves, structure = jax.tree.flatten(model.params)
        names = parameter_names(model.params)
        filled = [self._leaf(*pair, source, kept, tables, seen, new) for pair in zip(names, leaves, strict=True)]
        notify(self._told(kept, new))
        values, layout = jax.tree.flatten(model.constants)
        own = [self._taken(*pair, constants) for pair in zip(parameter_names(model.constants), values, strict=True)]
        return model._replace(params=jax.tree.unflatten(structure, filled), constants=jax.tree.unflatten(layout, own))

    def _leaf(self, name: str, leaf, source, kept: dict[int, int], tables: ElementTables | None, seen, new):
        head = _HEAD.match(name)
        if head is not None:
            own = int(head[2])
            if own not in kept:
                return leaf
            name = f"output/{head[1]}/{kept[own]}/{name[head.end():]}"
        if tables is not None and tables.pattern.search(name):
            return _with_rows(self._found(name, source), leaf.shape, tables, seen, new)
        return self._taken(name, leaf, source)

    def _found(self, name: str, source) -> np.ndarray:
        plain = name.replace("embedding/atom_embedding/", "embedding/")
        if plain not in source:
            raise InputError(f"{self.path} lacks {name}; start from a pretrained checkpoint, or one with direct forces")
        return source[plain]

    def _taken(self, name: str, leaf, source):
        array = self._found(name, source)
        if array.shape != leaf.shape:
            shapes = f"{list(array.shape)}, this model needs {list(leaf.shape)}"
            raise InputError(f"{self.path}: {name} is {shapes}; leave --model out")
        return jnp.asarray(array, leaf.dtype)

    def _told(self, kept: dict[int, int], new: np.ndarray) -> str:
        taken = ", ".join(self.names[i] for i in kept) or "none"
        fresh = ", ".join(name for i, name in enumerate(self.names) if i not in kept) or "none"
        symbols = ", ".join(chemical_symbols[z] for z in np.flatnonzero(new))
        rows = f"; elements new to it, which begin with the mean of its elements: {symbols}" if symbols else ""
        return f"weights from {self.path}; heads taken over: {taken}; new heads: {fresh}{rows}"


def _with_rows(
    table: np.ndarray, shape: tuple[int, ...], tables: ElementTables, seen: np.ndarray, new: np.ndarray
) -> Any:
    """A table of elements [..., n_row, d] enlarged to `shape`, rows of new elements at the mean of those seen.

    Args:
      seen, new: [121] bool, elements that the table was trained on, and others that begin; rows of neither stay as
        they are, and new rows of neither begin at the mean too.
    """
    n_row = table.shape[-2]
    rows, trained = (np.flatnonzero(mask) - tables.first for mask in (new, seen))
    mean = table[..., trained[trained < n_row], :].mean(axis=-2, keepdims=True, dtype=np.float64)
    out = np.broadcast_to(mean, (*table.shape[:-2], shape[-2], table.shape[-1])).astype(table.dtype)
    old = np.setdiff1d(np.arange(n_row), rows)
    out[..., old, :] = table[..., old, :]
    return jnp.asarray(out)
