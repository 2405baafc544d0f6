"""Run folders as the commands leave them, without training: for tests of tables and chains."""

import dataclasses
import json
from pathlib import Path

from jaxatoms.models.gemnet_oc.config import PRESETS
from jaxatoms.models.registry import model_record
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.pretrain_config import PretrainConfig

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
    counts = counts or {upstream: n}
    steps = n * epochs // (config.batch_size * config.accumulate)
    budget = {"n": n, "n_per_task": counts, "epochs": epochs, "samples": n * epochs, "steps": steps,
              "samples_per_step": n * epochs / steps}
    summary = {"finished": finished, "budget": budget, "n_per_task": counts}
    write(folder, config=dataclasses.asdict(config), summary=summary)
    return folder


def origin(init, upstream: str, step: int | None = None) -> dict:
    """What a fine-tuning run notes of the checkpoint of a pretraining run: its last step, or the one given."""
    run = Path(str(init).partition("/checkpoints")[0])
    if not (run / "config.json").exists():
        return {"upstream": upstream}
    settings, budget = json.loads((run / "config.json").read_text()), _budget(run)
    step = budget["steps"] if step is None else step
    return {"upstream": upstream, "init": str(init), "settings": settings, "budget": budget, "step": step}


def _budget(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())["budget"]


def finetuning(folder: Path, init, downstream, mae, unit="meV/A", *, best=None, upstream="ani1x", model="gemnet_oc_s",
               finished=True, started=PROVENANCE["started"], noted=True, step=None, tested=(20, 20),
               **settings) -> Path:
    """A fine-tuning run that was tested; returns its folder. `noted`: it kept the record of its origin."""
    config = FinetuneConfig(downstream=downstream, init=str(init), run_dir=str(folder), **settings)
    place = PROVENANCE | {"started": started}
    summary = {"finished": finished, "upstream": upstream, "provenance": place, "precision": config.precision}
    if noted:
        summary["origin"] = origin(init, upstream, step)
    write(folder, config=dataclasses.asdict(config), summary=summary,
          resolved={"model": model_record(dataclasses.replace(PRESETS[model], direct_forces=False))})
    if finished:
        reports = {"last_ema": {"mae": mae, "unit": unit}, "best_ema": {"mae": best or mae, "unit": unit}}
        write(folder, test={"n_structure": tested[0], "of": tested[1], **reports, "provenance": place})
    return folder


def comparison(folder: Path, scores: dict[tuple[str, str], float], extractor="equiformer_v2:1", data="d", **settings):
    """A csi.json of {(upstream, downstream): score}; every set has the fingerprint `data`."""
    config = {"aggregation": "flat", "sampling": "balanced"} | settings
    rows = [{"Upstream": u, "Downstream": d, "CSI Score": s, "low": 0.9 * s, "high": 1.1 * s,
             "upstream fingerprint": data, "downstream fingerprint": data}
            for (u, d), s in scores.items()]
    write(folder, csi={"rows": rows, "config": config, "extractor": extractor})
