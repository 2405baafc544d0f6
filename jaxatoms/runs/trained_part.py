"""What `--train` and `--freeze` mean: which parameters of a model a fine-tuning run changes."""

import fnmatch
import re
from typing import Any

import jax

from jaxatoms.models.architecture import Config
from jaxatoms.models.registry import architecture_of
from jaxatoms.training.partial import Partition, parameter_names
from jaxatoms.types import InputError

HEAD = "out_"  # how the names of heads begin, see `architecture.Model`
_NORM = re.compile(r"/(norm|alpha_norm)(_\w+)?/")


def partition_of(train: str, freeze: str | None, params: Any, config: Config) -> Partition | None:
    """The part of a model that is trained; None for all of it.

    Args:
      train: "all"; "heads"; "last:K", the heads and what belongs to the last K blocks; "norms", the heads and the
        backbone's normalisation layers; "lora:R", the heads and corrections of rank R of the backbone's dense layers.
      freeze: patterns of names with commas between, such as "embedding*,backbone/bases/*", of what stays as it is.

    Raises:
      InputError: a part that the architecture does not have, a pattern without a match, or nothing left.
    """
    if train == "all" and freeze is None:
        return None
    names = parameter_names(params)
    kind, _, number = train.partition(":")
    trained, corrected, rank = frozenset(names), frozenset[str](), 0
    if kind == "lora":
        rank = int(number)
        corrected = _dense_layers(names, params, rank)
        trained = _heads(names)
    elif kind == "last":
        trained = _last_blocks(names, params, config, int(number))
    elif train != "all":
        trained = _heads(names) | (_norms(names, config) if train == "norms" else frozenset())
    frozen = _matching(freeze, names)
    trained, corrected = trained - frozen, corrected - frozen
    if not trained | corrected:
        raise InputError(f"--train {train} --freeze {freeze} leaves nothing to train; freeze less")
    return Partition(jax.tree.structure(params), names, trained, corrected, rank)


def describe(partition: Partition | None, params: Any, train: str) -> str:
    """One line: how many numbers are trained, of how many."""
    leaves = dict(zip(parameter_names(params), jax.tree.leaves(params), strict=True))
    total = sum(leaf.size for leaf in leaves.values())
    if partition is None:
        return f"training all {total:,} parameters"
    own = sum(leaf.size for name, leaf in leaves.items() if name in partition.trained)
    for name in partition.corrected:
        n_in, n_out = leaves[name].shape[-2:]
        own += leaves[name].size // (n_in * n_out) * partition.rank * (n_in + n_out)
    of = f", with corrections of rank {partition.rank} to {len(partition.corrected)} layers" if partition.rank else ""
    return f"training {own:,} numbers beside {total:,} parameters (--train {train}){of}"


def _heads(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith(HEAD))


def _norms(names: tuple[str, ...], config: Config) -> frozenset[str]:
    found = frozenset(name for name in names if _NORM.search(name) and not name.startswith(HEAD))
    if not found:
        own = architecture_of(config).name
        raise InputError(f"--train norms: {own} has no normalisation layers; choose heads, last:K or lora:R")
    return found


def _last_blocks(names: tuple[str, ...], params: Any, config: Config, count: int) -> frozenset[str]:
    own = architecture_of(config)
    if own.block_of is None:
        raise InputError(f"--train last:{count}: the blocks of {own.name} are stored together; choose heads or lora:R")
    n_block = config.num_blocks
    if count > n_block:
        raise InputError(f"--train last:{count}: the network has {n_block} blocks; choose at most last:{n_block}")
    return frozenset(name for name in names if own.block_of(name, config) >= n_block - count)


def _dense_layers(names: tuple[str, ...], params: Any, rank: int) -> frozenset[str]:
    """Kernels of the backbone; embeddings, which are no products of activations, are not among them.

    Raises:
      InputError: a layer that is no wider than the rank.
    """
    found = {
        name: leaf.shape
        for name, leaf in zip(names, jax.tree.leaves(params), strict=True)
        if name.startswith("backbone/") and name.endswith("/kernel") and leaf.ndim > 1 and "embedding/" not in name
    }
    name, shape = min(found.items(), key=lambda item: min(item[1][-2:]))
    if min(shape[-2:]) <= rank:
        width = min(shape[-2:])
        raise InputError(f"--train lora:{rank}: the layer {name} is {width} wide; choose a rank below {width}")
    return frozenset(found)


def _matching(freeze: str | None, names: tuple[str, ...]) -> frozenset[str]:
    out: set[str] = set()
    for pattern in (freeze or "").split(",") if freeze is not None else ():
        found = fnmatch.filter(names, pattern.strip())
        if not found:
            tops = ", ".join(sorted({"/".join(name.split("/")[:2]) for name in names}))
            raise InputError(f"--freeze {pattern!r} matches no parameter; names begin with {tops}")
        out.update(found)
    return frozenset(out)
