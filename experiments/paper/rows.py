"""One entry per published row: what to pretrain, what to fine-tune, the numbers to expect, the cost.

    for row in paper_rows("1"): print(row.key, row.expected)

`experiments.reproduce --table 1 --row ani1x --dry-run` prints the commands.
"""

import dataclasses
import re
from collections import Counter

from experiments.paper.cost import DOWNSTREAM_SIZES, UPSTREAM_SIZES, Cost, Size, training_cost
from experiments.paper.names import BACKBONE, DOWNSTREAM, UPSTREAM, short_count
from experiments.paper.published import Published, RowKey, columns_of, published, rows_of
from jaxatoms.data.downstream import downstream
from jaxatoms.data.mixing import mix_counts
from jaxatoms.runs.recipes import Recipe, find_recipe
from jaxatoms.types import InputError

TABLES = ("1", "2", "3", "4", "5", "fig4")
BATCH = 20  # of pretraining
# Structures in the training set of an upstream set, all four rounded down where only a rounded count is published;
# docs/reference/datasets.md, Overview and ANI-1x to OC22. OC20: its 2M split.
UPSTREAM_TRAIN = {"ani1x": 3_952_056, "transition1x": 9_100_000, "oc20": 2_000_000, "oc22": 8_225_293}
# Structures in the fine-tuning train split; docs/reference/finetuning.md, Splits.
N_TRAIN = {
    "rmd17:aspirin": 950, "md22:Ac-Ala3-NHMe": 5_700, "spice:solvated_amino_acids": 1_040, "qm9:U_0": 110_831,
    "qm9:delta_eps": 110_831, "qmof": 16_300,
    # train + validation is what the official test fold leaves of 1,265; nine tenths of it are trained
    **{f"matbench:phonons/{fold}": 910 for fold in range(5)},
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of a published table as something that can be run.

    Attributes:
      key: what experiments.reproduce calls it.
      row: its budget, upstream set and backbone as printed.
      upstream: names of data sets to pretrain on; () for a public JMP checkpoint.
      mix: option of experiments.pretrain.
      model: preset.
      downstream: names of data sets to fine-tune on, one run each.
      expected: the printed numbers.
    """

    table: str
    key: str
    row: RowKey
    upstream: tuple[str, ...]
    mix: str
    model: str
    downstream: tuple[str, ...]
    expected: tuple[Published, ...]

    @property
    def is_jmp(self) -> bool:
        """Whether the row starts from a public checkpoint instead of a pretraining run."""
        return not self.upstream


def paper_rows(table: str) -> list[PaperRow]:
    """The rows of a table, in printed order.

    Args:
      table: one of TABLES.

    Raises:
      InputError: no such table.
    """
    if table not in TABLES:
        raise InputError(f"--table must be {', '.join(TABLES)}, got {table!r}")
    entries = published(table)
    rows = rows_of(entries)
    return [_paper_row(table, key, row, entries) for key, row in zip(_keys(rows), rows, strict=True)]


def find_row(table: str, key: str) -> PaperRow:
    """The row of that key.

    Raises:
      InputError: no such row; the message lists them.
    """
    rows = {row.key: row for row in paper_rows(table)}
    if key not in rows:
        raise InputError(f"table {table} has no row {key!r}; its rows are {', '.join(rows)}")
    return rows[key]


def _paper_row(table: str, key: str, row: RowKey, entries: list[Published]) -> PaperRow:
    names, mix = upstream_of(row)
    columns = {(c.dataset, c.metric) for c in columns_of(entries)}
    if ("MatBench phonons mean", "y_mae") in columns:
        columns |= {(f"MatBench phonons fold{fold}", "y_mae") for fold in range(5)}
    return PaperRow(
        table=table,
        key=key,
        row=row,
        upstream=names,
        mix=mix,
        model=next(p for p, label in BACKBONE.items() if label in row.backbone),
        downstream=tuple(name for name, column in DOWNSTREAM.items() if column in columns),
        expected=tuple(e for e in entries if e.row == row),
    )


def upstream_of(row: RowKey) -> tuple[tuple[str, ...], str]:
    """(names of data sets, mix) of a printed upstream; no names for public JMP checkpoints.

    Example:
      >>> upstream_of(RowKey(3_000_000, 5, "ANI-1x (2M) + OC22 (1M)", "GemNet-OC-S"))
      (('ani1x', 'oc22'), '2:1')
    """
    ours = {label: name for name, label in UPSTREAM.items()}
    if "JMP" in row.backbone:
        return (), "temperature"
    if row.upstream.startswith("Mixed"):
        return tuple(UPSTREAM), "balanced" if "Balanced" in row.upstream else "temperature"
    parts = [part.partition(" (") for part in row.upstream.split(" + ")]
    shares = [tail.rstrip("M)") for _, _, tail in parts]
    return tuple(ours[label] for label, _, _ in parts), ":".join(shares) if len(parts) > 1 else "balanced"


def _keys(rows: list[RowKey]) -> list[str]:
    """Short unique names: by upstream set, then with N, then with E."""
    keys = [_slug(row) for row in rows]
    for part in (lambda row: f"-{short_count(row.n)}", lambda row: f"x{row.epochs}"):
        count = Counter(keys)
        keys = [key + part(row) if count[key] > 1 else key for key, row in zip(keys, rows, strict=True)]
    return keys


def _slug(row: RowKey) -> str:
    if "JMP" in row.backbone:
        size = "l" if "JMP-L" in row.backbone else "s"
        return f"jmp_{size}" + ("_rerun" if "*" in row.backbone else "")
    if row.upstream.startswith("Mixed"):
        return f"mixed_{upstream_of(row)[1]}"
    return "+".join(upstream_of(row)[0])


# --- sizes --------------------------------------------------------------------------------------------


def structures_to_train(row: PaperRow, n: int) -> int:
    """How many structures a row trains on where `n` are asked for: no more than a single upstream set has.

    The authors' code clamps N in the same way, so the paper's OC20 row of N = 3e6 saw the 2,000,000 of the 2M split
    (docs/reference/pretraining.md, Budget).
    """
    return min(n, UPSTREAM_TRAIN[row.upstream[0]]) if len(row.upstream) == 1 else n


def shortfalls(row: PaperRow, n: int) -> list[str]:
    """Where the training sets of a row hold less than its share of `n` structures, in words."""
    sizes = [UPSTREAM_TRAIN[name] for name in row.upstream]
    counts = mix_counts(row.upstream, sizes, n, row.mix) if row.upstream else []
    return [
        f"{int(count):,} structures of {name}, whose training set has {size:,}"
        for name, count, size in zip(row.upstream, counts, sizes, strict=True)
        if int(count) > size
    ]


# --- cost ---------------------------------------------------------------------------------------------


def recipe_of(name: str) -> Recipe:
    """How a published downstream set is fine-tuned."""
    return find_recipe(name, downstream(name))


def finetune_steps(name: str) -> int:
    """Optimiser steps of the paper's run: ceil(train / batch) x epochs."""
    recipe = recipe_of(name)
    return -(-N_TRAIN[name] // recipe.batch_size) * recipe.epochs


def pretrain_cost(row: PaperRow, n: int, model: str) -> Cost:
    """Cost of the row's pretraining with `n` structures."""
    epochs = row.row.epochs or 0
    counts = mix_counts(row.upstream, [1_000_000] * len(row.upstream), n, row.mix)
    sizes = [(int(count) * epochs, UPSTREAM_SIZES[name]) for count, name in zip(counts, row.upstream, strict=True)]
    return training_cost(model, sizes, n * epochs // BATCH, "direct")


def finetune_cost(name: str, steps: int, model: str) -> Cost:
    """Cost of fine-tuning for `steps`."""
    size, forces = DOWNSTREAM_SIZES.get(name, (Size(float("nan")), "none"))
    batch = recipe_of(name).batch_size
    return training_cost(model, [(steps * batch, size)], steps, forces)


def slug(name: str) -> str:
    """A data set's name as part of a folder name."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-")
