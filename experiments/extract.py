"""Node features of a data set, for the Chemical Similarity Index.

    python -m experiments.extract --dataset ani1x --checkpoint runs/mixed --sampling balanced --out ani1x.npz

Writes the moments of the features in random blocks; with --store every feature row too.
"""

import dataclasses
import time
from pathlib import Path

from experiments import cli
from experiments.extraction import Extracted, Request, extract_for, save_extracted
from experiments.extractors import Extractor, load_extractor
from experiments.runtime import prepare_process
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What to extract, with which network."""

    dataset: str
    """NAME, NAME@PATH, file:PATH or demo:organic; its train split is sampled."""
    checkpoint: str
    """RUN (its best-validation checkpoint), RUN@last, a step folder, or a PyTorch file such as jmp-s.pt."""
    out: str
    """File to write (.npz)."""
    n: str = "10000"
    """Structures; `all` takes the train split whole."""
    sampling: str = "random"
    """random, balanced, balanced_no_rep, stratified or uniform over the data set's classes."""
    seed: int = 0
    aggregation: str = "flat"
    """flat (one row per atom), mean, sum or max over the atoms of a structure."""
    edge_dropout: float = 0.0
    """0.1 reproduces the reference, which drops edges of the upstream sets."""
    store: bool = False
    """Keep every feature row, class and element, not only the moments."""
    blocks: int = 32
    """Random groups of structures, for confidence intervals."""
    raw_weights: bool = False
    """The raw weights instead of their moving average."""
    backbone: str = "auto"
    """gemnet_oc or equiformer_v2: refuse a checkpoint of another kind."""
    edge_direction: str | None = None
    """EquiformerV2: source_to_target (as the paper's code feeds it) or target_to_source (as the weights were trained);
    default: what the checkpoint says."""
    paper: bool = False
    """The paper's upstream setting: edge dropout 0.1 and, for EquiformerV2, source_to_target."""
    batch_edges: int = 4096
    """Edge slots of a batch."""
    data_root: str | None = None
    cache_dir: str | None = None
    quiet: bool = False


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.extract`."""
    config = cli.parse(ExtractConfig, argv, description=__doc__, prog="python -m experiments.extract")
    prepare_process()
    extractor, began = _extractor(config), time.perf_counter()
    request = Request(
        dataset=config.dataset,
        n=config.n,
        sampling=config.sampling,
        seed=config.seed,
        aggregation=config.aggregation,
        edge_dropout=0.1 if config.paper else config.edge_dropout,
        n_blocks=config.blocks,
    )
    data = extract_for(config, request, extractor, config.store)
    save_extracted(Path(config.out), data)
    print(describe(data, time.perf_counter() - began))
    print(f"-> {config.out}")
    return 0


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


def describe(data: Extracted, seconds: float) -> str:
    """One line about what was extracted."""
    i = data.info
    replaced = f", {i['n_replaced']} replaced" if i.get("n_replaced") else ""
    return (
        f"{i['dataset']}: {i['n_structure']:,} structures ({i['sampling']}{replaced}), {i['n_atom']:,} atoms, "
        f"{data.blocks.mean.shape[-1]} features each, {i['n_atom'] / max(seconds, 1e-9):,.0f} atoms/s with compilation"
    )


if __name__ == "__main__":
    raise SystemExit(main())
