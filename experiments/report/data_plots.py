"""The plots of `experiments.data info`: elements, sizes, energies before and after references, forces or target."""

from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from jaxatoms.data.statistics import Moments
from jaxatoms.plots import drawing


def draw(result, path: Path) -> None:
    """Writes a PNG of a `data.Report`.

    Raises:
      InputError: the file cannot be written.
    """
    found, facts = result.found, result.facts
    with drawing(path, 6, panel=(4, 3.25), columns=3, dpi=110) as (figure, axes):
        _elements(axes[0], found.elements)
        _histogram(axes[1], found.n_node, "atoms per structure", "")
        _histogram(axes[2], found.energy, "energy", "eV")
        _histogram(axes[3], found.residual, "energy after references", "eV", result.spec.energy_std)
        _histogram(axes[4], found.forces, "force components", "eV/A",
                   getattr(facts, "force_std", None) or result.spec.force_std, log=True)  # fmt: skip
        _histogram(axes[5], found.target, "target", getattr(facts, "unit", ""), getattr(facts, "std", None),
                   getattr(facts, "mean", None) or 0.0)  # fmt: skip
        figure.suptitle(f"{result.spec.name}: {found.n_record} structures (dashed: published mean +- std)")


def _elements(axis, counts: np.ndarray) -> None:
    present = np.flatnonzero(counts)
    shown = present[np.argsort(-counts[present])][:30]
    labels = [chemical_symbols[z] if z < len(chemical_symbols) else str(z) for z in shown]
    axis.bar(np.arange(len(shown)), counts[shown])
    axis.set_xticks(np.arange(len(shown)), labels, fontsize=7, rotation=90 if len(shown) > 15 else 0)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.5)
    axis.set_title(f"atoms by element ({len(present)})")


def _histogram(axis, moments: Moments, title: str, unit: str, std=None, mean=0.0, log=False) -> None:
    axis.set_title(title)
    if not len(moments.sample):
        axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
        return
    axis.hist(moments.sample, bins=80)
    axis.ticklabel_format(axis="x", useOffset=False)
    axis.tick_params(axis="x", labelrotation=15)
    axis.set_xlabel(f"{unit}  mean {moments.mean:.5g}, std {moments.std:.4g}")
    if log:
        axis.set_yscale("log")
    for place in () if std is None else (mean - std, mean + std):
        axis.axvline(place, color="black", linestyle="--", linewidth=0.8)
