"""Checkpoints <-> safetensors files with the names and layouts of the public PyTorch checkpoints, and a JSON card.

`weights.safetensors` holds the arrays as a PyTorch user expects them (`load_file`, then `load_state_dict`); what else a
checkpoint consists of (dimensions, tasks, units, origin) stands in `weights.safetensors.json`. Both ways are exact.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxatoms.interop.arrays import export_arrays
from jaxatoms.types import InputError

FORMAT = "jaxatoms-1"


def card_path(path: Path) -> Path:
    """The JSON card beside a safetensors file."""
    return path.with_name(path.name + ".json")


def write_model(path: Path, model: Any, config: Any, meta: dict) -> dict:
    """Write a model's arrays and its record.

    Returns:
      {"n_array", "n_value"}.

    Raises:
      InputError: the place cannot be written.
    """
    arrays = {name: np.array(array, order="C") for name, array in export_arrays(model, config).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path, metadata={"format": "pt", "card": FORMAT})
        card_path(path).write_text(json.dumps({"format": FORMAT, "meta": meta}, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    return {"n_array": len(arrays), "n_value": sum(a.size for a in arrays.values())}


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays by checkpoint name, and the record of the card.

    Raises:
      InputError: file or card missing or damaged.
    """
    try:
        card = json.loads(card_path(path).read_text())
        arrays = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"cannot read {path} with its card {card_path(path).name}: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise InputError(f"{card_path(path)} is no card of this program; write it with experiments.convert")
    return arrays, card["meta"]
