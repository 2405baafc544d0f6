"""Our names for data sets and networks -> those that the paper prints."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from jaxatoms.data.mixing import split_names
from jaxatoms.data.registry import DATASETS, find_spec
from jaxatoms.models.gemnet_oc.config import PRESETS
from jaxatoms.types import InputError

UPSTREAM = {spec.name: spec.title for spec in DATASETS.values() if spec.paper_millions}
# Dataset and metric of a column; its unit is what the run reports.
DOWNSTREAM = {
    "rmd17:aspirin": ("rMD17", "force_mae"),
    "md22:Ac-Ala3-NHMe": ("MD22", "force_mae"),
    "spice:solvated_amino_acids": ("SPICE", "force_mae"),
    "qm9:U_0": ("QM9", "U0_mae"),
    "qm9:delta_eps": ("QM9", "delta_eps_mae"),
    "qmof": ("QMOF", "bandgap_mae"),
    **{f"matbench:phonons/{fold}": (f"MatBench phonons fold{fold}", "y_mae") for fold in range(5)},
}
BACKBONE = {"gemnet_oc_s": "GemNet-OC-S", "gemnet_oc_l": "GemNet-OC-L", "gemnet_oc_tiny": "GemNet-OC-tiny"}
SCRATCH = "scratch"
_FREE_FIELDS = ("remat", "direct_forces")  # they change neither the backbone's name nor its size class


def base_name(name: str) -> str:
    """A data set's name without its path, aliases resolved; files are named by their stem.

    Example:
      >>> base_name("qm9:U0@/data/qm9_v3.pt")
      'qm9:U_0'
    """
    if name.startswith("file:"):
        return f"file:{Path(name[5:].partition('#')[0]).stem}"
    base = name.partition("@")[0]
    try:
        return find_spec(base).name
    except InputError:
        return base


def upstream_label(upstream: str, mix: str = "balanced", counts: Mapping[str, int] | None = None) -> str:
    """The paper's name of what a run was pretrained on.

    Args:
      upstream: the option of experiments.pretrain, or "scratch".
      counts: structures per task, for mixtures of given ratio.

    Example:
      >>> upstream_label("ani1x,oc22", "2:1", {"ani1x": 2_000_000, "oc22": 1_000_000})
      'ANI-1x (2M) + OC22 (1M)'
    """
    if upstream == SCRATCH:
        return SCRATCH
    names = split_names(upstream)
    bases = [base_name(name) for name in names]
    labels = [_title(base) for base in bases]
    if len(labels) == 1:
        return labels[0]
    if set(bases) == set(UPSTREAM) and mix in ("balanced", "temperature"):
        return "Mixed (Balanced)" if mix == "balanced" else "Mixed (Temp)"
    if counts and ":" in mix:
        return " + ".join(f"{label} ({short_count(counts.get(name))})" for label, name in zip(labels, names))
    return f"{' + '.join(labels)} ({mix})"


def _title(base: str) -> str:
    return DATASETS[base].title or base if base in DATASETS else base


def short_count(n: int | None) -> str:
    """2000000 -> 2M, 1628 -> 1628."""
    if n is None:
        return "?"
    for unit, word in ((10**6, "M"), (10**3, "k")):
        if n >= unit and n % (unit // 10) == 0:
            return f"{n / unit:g}{word}"
    return str(n)


def backbone_label(dimensions: Mapping[str, object]) -> str:
    """The preset that has these dimensions, or their main ones; another architecture by its name and depth.

    A network of equal widths whose record has no layout has one layer more than today's, and a name of its own.
    """
    if dimensions.get("architecture", "gemnet_oc") != "gemnet_oc":
        return f"{dimensions['architecture']} ({dimensions.get('num_layers', '?')} layers)"
    earlier = "layout" not in dimensions and dimensions.get("emb_size_atom") == dimensions.get("emb_size_edge")
    for preset, label in BACKBONE.items():
        wanted = {k: v for k, v in dataclasses.asdict(PRESETS[preset]).items() if k not in _FREE_FIELDS}
        if all(dimensions.get(k, v) == v for k, v in wanted.items()) and "num_blocks" in dimensions:
            return f"{label} (earlier layout)" if earlier else label
    return f"GemNet-OC ({dimensions.get('num_blocks')} blocks, {dimensions.get('emb_size_edge')} wide)"


def jmp_label(file: str, backbone: str) -> str:
    """Our fine-tuning of a public JMP checkpoint, as the paper marks its own: JMP-S* (GemNet-OC-S)."""
    return f"JMP-{'L' if backbone.endswith('-L') else 'S'}* ({backbone})" if "jmp" in file.lower() else backbone
