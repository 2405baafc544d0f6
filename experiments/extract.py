"""Node features of a data set, for the Chemical Similarity Index.

    python -m experiments.extract --dataset ani1x --checkpoint runs/mixed --sampling balanced --out ani1x.npz

Writes the moments of the features in random blocks; with --store every feature row too. With --losses: the losses of
each structure, which experiments.select --method difficulty chooses by.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxatoms.data.subset import parse_count
from jaxatoms.features.difficulty import Losses, measure_losses, save_losses
from jaxatoms.features.extraction import (
    BATCH_EDGES,
    N_STRUCTURES,
    Extracted,
    Request,
    extract_for,
    reusable,
    sample_for,
)
from jaxatoms.features.extractors import Extractor, load_extractor
from jaxatoms.tools import cli
from jaxatoms.tools.runtime import prepare_process
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What to extract, with which network."""

    dataset: str
    """This names the data set, whose train split is sampled: NAME, NAME@PATH, file:PATH or demo:organic."""
    checkpoint: str
    """Features are those of this network: RUN (its best-validation checkpoint), RUN@last, a step folder, or a PyTorch
    file such as jmp-s.pt."""
    out: str
    """The result is written into this .npz file; features that were made from the same inputs are kept."""
    n: str = N_STRUCTURES
    """This many structures are sampled; `all` takes the train split whole, as does its own number."""
    sampling: str | None = None
    """Structures are sampled by this strategy over the data set's classes: random (the default), balanced,
    balanced_no_rep, stratified or uniform."""
    repeat: bool = False
    """Draw --n structures from a smaller set too, some of them several times, as the reference's balanced sampler
    does."""
    seed: int = 0
    """The seed determines which structures are drawn, and their blocks."""
    aggregation: str | None = None
    """Features are kept per atom (flat, the default), or reduced over the atoms of a structure (mean, sum or max)."""
    edge_dropout: float = 0.0
    """Each directed edge is dropped with this probability; 0.1 reproduces the reference, which drops edges of the
    upstream sets."""
    store: bool = False
    """Keep every feature row, class and element, not only the moments."""
    blocks: int | None = None
    """Structures are divided at random into this many blocks, for confidence intervals; the default is 32, and fewer in
    a smaller set."""
    raw_weights: bool = False
    """Use the raw weights and not their moving average."""
    backbone: str = "auto"
    """gemnet_oc or equiformer_v2 refuses a checkpoint of another kind; auto takes any."""
    edge_direction: str | None = None
    """EquiformerV2 is fed vectors from source_to_target (as by the paper's code) or target_to_source (as its weights
    were trained); the default is what the checkpoint says."""
    paper: bool = False
    """Use the paper's upstream setting: an edge dropout of 0.1 and, for EquiformerV2, source_to_target."""
    losses: bool = False
    """Write the energy and force losses of every structure instead of features, for experiments.select."""
    task: str | None = None
    """With --losses this names the head, where there are several; the default is the one trained on the data set."""
    batch_edges: int = BATCH_EDGES
    """A batch has this many edge slots."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""
    quiet: bool = False
    """Do not print the progress of the extraction."""

    def __post_init__(self):
        cli.check_suffix(self, "out", ".npz")
        cli.check_positive(self, "blocks", "batch_edges")
        if not 0 <= self.edge_dropout < 1:
            raise InputError(f"--edge-dropout must be at least 0 and below 1, got {self.edge_dropout}")
        if self.paper:
            cli.refuse_unused(self, ("edge_dropout", "edge_direction"), "beside --paper, which sets it")
        if self.losses:
            cli.refuse_unused(self, _OF_FEATURES, "with --losses")
        else:
            cli.refuse_unused(self, ("task",), "without --losses")
        if parse_count(self.n) == "all":
            cli.refuse_unused(self, ("sampling", "repeat"), "where --n is all")


_OF_FEATURES = ("repeat", "aggregation", "edge_dropout", "store", "blocks", "backbone", "edge_direction", "paper")


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.extract`."""
    config = cli.parse(ExtractConfig, argv, description=__doc__, prog="python -m experiments.extract")
    prepare_process()
    cli.resolve_run_dir(Path(config.out).parent, "--out")  # before hours of work that could not be kept
    request = Request(
        dataset=config.dataset,
        n=config.n,
        sampling=config.sampling or "random",
        seed=config.seed,
        aggregation=config.aggregation or "flat",
        edge_dropout=0.1 if config.paper else config.edge_dropout,
        n_blocks=config.blocks,
        repeat=config.repeat,
    )
    if config.losses:
        losses = measure_losses(config, request)
        save_losses(Path(config.out), losses)
        print(describe_losses(losses))
    else:
        print(describe(_features(config, request)))
    print(f"-> {config.out}")
    return 0


def _features(config: ExtractConfig, request: Request) -> Extracted:
    extractor, path = _extractor(config), Path(config.out)
    sample = sample_for(config, request, extractor)
    found = reusable(path, sample, config.store, config.quiet)
    return extract_for(config, sample, extractor, config.store, path) if found is None else found


def _extractor(config: ExtractConfig) -> Extractor:
    direction = config.edge_direction
    if config.paper and config.backbone == "equiformer_v2":
        direction = "source_to_target"
    extractor = load_extractor(config.checkpoint, config.raw_weights, direction)
    kind = extractor.identity.split(":")[0]
    if config.backbone not in ("auto", kind):
        raise InputError(f"{config.checkpoint} is a {kind}, not a {config.backbone}; leave out --backbone")
    if config.paper and kind == "equiformer_v2" and config.backbone == "auto":
        raise InputError("--paper with an EquiformerV2 needs --backbone equiformer_v2")
    return extractor


def describe_losses(losses: Losses) -> str:
    """One line about what was measured."""
    i, total = losses.info, losses.total
    known = np.isfinite(total)
    without = f", {(~known).sum():,} of them without a label" if not known.all() else ""
    left_out = f"; {i['n_left_out']:,} left out, which the network cannot take" if i["n_left_out"] else ""
    return (f"{i['dataset']}: losses of {len(total):,} structures{without} by the head {i['head']}{left_out}, "
            f"median {np.median(total[known]):.4g}")  # fmt: skip


def describe(data: Extracted) -> str:
    """One line about what was extracted."""
    i = data.info
    distinct = f", {i['n_distinct']:,} distinct" if i["n_distinct"] < i["n_structure"] else ""
    replaced = f", {i['n_replaced']} replaced" if i.get("n_replaced") else ""
    how = f"{i['sampling']}{distinct}{replaced}"
    width = data.blocks.mean.shape[-1]
    return f"{i['dataset']}: {i['n_structure']:,} structures ({how}), {i['n_atom']:,} atoms, {width} features each"


if __name__ == "__main__":
    raise SystemExit(main())
