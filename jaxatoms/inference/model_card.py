"""A checkpoint's record -> `card.json` and `README.md`: data, budget, seeds, metrics, versions, licence."""

import json
from pathlib import Path
from typing import Any

from jaxatoms.data.task_record import TaskRecord
from jaxatoms.inference.checkpoint_meta import CheckpointMeta
from jaxatoms.types import InputError

_DATA = {"upstream": "upstream", "structures": "n", "epochs": "epochs"}  # of the card -> of the settings
UNKNOWN_LICENCE = "not recorded; that of the code is Apache-2.0"


def make_card(meta: CheckpointMeta) -> dict[str, Any]:
    """The facts of a checkpoint's record that its users ask for; what is not recorded is None."""
    source, settings, origin = meta.source or {}, meta.config, meta.provenance or {}
    return {
        "model": dict(meta.model),
        "heads": [_head(task) for task in meta.tasks],
        "data": {name: settings.get(key) for name, key in _DATA.items()},
        "converted_from": source or None,
        "initialised_from": meta.origin,
        "step": meta.step,
        "seed": settings.get("seed"),
        "precision": meta.precision,
        "metrics": meta.metrics,
        "code": {key: origin.get(key) for key in ("version", "commit", "dirty", "versions", "started")},
        "licence_of_weights": source.get("licence") or UNKNOWN_LICENCE,
    }


def _head(task: TaskRecord) -> dict[str, Any]:
    units = {name: getattr(task, name) for name in ("name", "energy_std", "force_std", "cutoff", "max_neighbors")}
    return units | {"energies": energies_of(task)}


def write_card(folder: Path, meta: CheckpointMeta) -> dict[str, Any]:
    """Write both files into a checkpoint's or a run's folder; returns the card.

    Raises:
      InputError: the folder cannot be written.
    """
    card = make_card(meta)
    try:
        (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
        (folder / "README.md").write_text(card_text(card))
    except OSError as error:
        raise InputError(f"cannot write the card into {folder}: {error.strerror}; choose another --out") from error
    return card


def card_text(card: dict[str, Any]) -> str:
    """The card as a page."""
    model = card["model"] or {}
    lines = [f"# {model.get('architecture', 'gemnet_oc')} checkpoint", ""]
    origins = (("Data", "data"), ("Converted from", "converted_from"), ("Initialised from", "initialised_from"))
    for title, key in origins:
        facts = {k: v for k, v in (card[key] or {}).items() if v is not None}
        if facts:
            lines.append(f"- **{title}**: " + ", ".join(f"{k} {v}" for k, v in facts.items()))
    for title, key in (("Step", "step"), ("Seed", "seed"), ("Precision", "precision"), ("Metrics", "metrics")):
        if card[key] is not None:
            lines.append(f"- **{title}**: {card[key]}")
    lines += [f"- **Licence of the weights**: {card['licence_of_weights']}", ""]
    titles = ("head", "energy unit, eV", "force unit, eV/A", "cutoff, A", "neighbours", "energies")
    lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for head in card["heads"]:
        units = (_number(head[key]) for key in ("energy_std", "force_std", "cutoff"))
        lines.append(f"| {head['name']} | {' | '.join(units)} | {head['max_neighbors']} | {head['energies']} |")
    code = card["code"]
    lines += ["", f"Made by jaxatoms {code['version']} (commit {code['commit']}). Load it with "
              "`jaxatoms.ase.JaxAtomsCalculator`, `experiments.predict` or `experiments.finetune --init`.", ""]
    return "\n".join(lines)


def energies_of(task: TaskRecord) -> str:
    """Which total energies a head gives, in words."""
    if "energy" not in task.labels:
        return "not learnt"
    if task.energy_zero == "unknown":
        return "up to a constant of each composition"
    whole = task.reference.span is None
    return "of all compositions of its elements" if whole else "of combinations of the training compositions"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
