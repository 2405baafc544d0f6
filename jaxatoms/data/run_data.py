"""The data side of a run folder: split, reference energies and constants.

They are written when a run starts, and read again by everything that continues or judges the run, so that its test
structures stay the ones it never trained on.
"""

import json
from pathlib import Path

from jaxatoms.data.splits import Split, load_split, save_split
from jaxatoms.data.store import Store
from jaxatoms.types import InputError

_SPLIT, _CONSTANTS = "split.npz", "constants.json"


def save_run_data(folder: Path, split: Split, store: Store, constants: dict):
    """Write a run's split, with the fingerprint of its data, and the numbers that its targets are normalised by."""
    folder.mkdir(parents=True, exist_ok=True)
    save_split(folder / _SPLIT, split, store)
    (folder / _CONSTANTS).write_text(json.dumps(constants, indent=1) + "\n")


def load_run_split(folder: Path, store: Store) -> Split:
    """The split that a run was started with.

    Raises:
      InputError: there is none, or the data have changed since; the message names both fingerprints.
    """
    if not (folder / _SPLIT).exists():
        raise InputError(f"{folder} has no {_SPLIT}, so the run's own split is unknown; start a new run")
    return load_split(folder / _SPLIT, store)


def load_run_constants(folder: Path) -> dict | None:
    """The constants of a run; None for one of an older version, whose data give the same ones again.

    Raises:
      InputError: a damaged file.
    """
    path = folder / _CONSTANTS
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); start a new run") from None
