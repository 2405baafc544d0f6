"""Run folders as the commands leave them, without training: for tests of tables and chains."""

import dataclasses
import json
from pathlib import Path

from experiments.finetune import FinetuneConfig
from experiments.pretrain import PretrainConfig
from jaxatoms.models.gemnet_oc.config import PRESETS
from jaxatoms.models.registry import model_record

PROVENANCE = {
    "version": "0.1.0", "commit": "0123456789abcdef", "dirty": False, "device": {"kind": "cpu"},
    "started": "2025-01-01T00:00:00+00:00",
}  # fmt: skip


def write(folder: Path, **records: dict):
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))


def pretraining(folder: Path, upstream="ani1x", n=2_000_000, epochs=5, finished=True, counts=None, **settings) -> Path:
    """A pretraining run; returns its folder."""
    config = PretrainConfig(upstream=upstream, n=str(n), epochs=epochs, run_dir=str(folder), **settings)
    summary = {"finished": finished, "budget": {"n": n, "epochs": epochs}, "n_per_task": counts or {upstream: n}}
    write(folder, config=dataclasses.asdict(config), summary=summary)
    return folder


def finetuning(folder: Path, init, downstream, mae, unit="meV/A", *, best=None, upstream="ani1x", model="gemnet_oc_s",
               finished=True, started=PROVENANCE["started"], **settings) -> Path:
    """A fine-tuning run that was tested; returns its folder."""
    config = FinetuneConfig(downstream=downstream, init=str(init), run_dir=str(folder), **settings)
    place = PROVENANCE | {"started": started}
    summary = {"finished": finished, "upstream": upstream, "provenance": place, "precision": "float32"}
    write(folder, config=dataclasses.asdict(config), summary=summary,
          resolved={"model": model_record(dataclasses.replace(PRESETS[model], direct_forces=False))})
    if finished:
        reports = {"last_ema": {"mae": mae, "unit": unit}, "best_ema": {"mae": best or mae, "unit": unit}}
        write(folder, test={"n_structure": 10, "of": 20, **reports, "provenance": place})
    return folder


def comparison(folder: Path, scores: dict[tuple[str, str], float], extractor="equiformer_v2:1", **settings):
    """A csi.json of {(upstream, downstream): score}."""
    config = {"aggregation": "flat", "sampling": "balanced"} | settings
    rows = [{"Upstream": u, "Downstream": d, "CSI Score": s, "low": 0.9 * s, "high": 1.1 * s}
            for (u, d), s in scores.items()]
    write(folder, csi={"rows": rows, "config": config, "extractor": extractor})
