"""A checkpoint's record -> `card.json` and `README.md`: data, budget, seeds, metrics, versions, licence."""

import json
from pathlib import Path
from typing import Any

from jaxatoms.inference.model import labels_of
from jaxatoms.types import InputError

UNKNOWN_LICENCE = "not recorded; that of the code is Apache-2.0"


def make_card(meta: dict[str, Any]) -> dict[str, Any]:
    """The facts of a checkpoint's record that its users ask for; what is not recorded is None."""
    config, source = meta.get("config") or {}, meta.get("source") or {}
    init = meta.get("init") or {}
    licence = source.get("licence") or init.get("licence") or UNKNOWN_LICENCE
    origin = meta.get("provenance") or {}
    return {
        "model": meta.get("model"),
        "heads": [{key: task.get(key) for key in ("name", "energy_std", "force_std", "cutoff", "max_neighbors")}
                  | {"energies": energies_of(task)} for task in meta.get("tasks", [])],
        "data": {"upstream": config.get("upstream"), "structures": config.get("n"), "epochs": config.get("epochs")},
        "converted_from": source or None,
        "initialised_from": init or None,
        "step": meta.get("step"),
        "seed": config.get("seed"),
        "precision": meta.get("precision"),
        "metrics": meta.get("metrics"),
        "code": {key: origin.get(key) for key in ("version", "commit", "dirty", "versions", "started")},
        "licence_of_weights": licence,
    }


def write_card(folder: Path, meta: dict[str, Any]) -> dict[str, Any]:
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


def energies_of(task: dict[str, Any]) -> str:
    """Which total energies a head gives, in words."""
    if "energy" not in labels_of(task):
        return "not learnt"
    if task.get("energy_zero", "fitted") == "unknown":
        return "up to a constant of each composition"
    return "of combinations of the training compositions" if "span" in task else "of all compositions of its elements"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
