"""What `--targets` says is learnt: energies, forces and stress with weights, or properties by name."""

import math

from jaxatoms.types import InputError

POTENTIAL = ("energy", "forces", "stress")
# Of targets that are given without a number; energies and stress are per atom (training/losses/potential.py).
DEFAULT_WEIGHTS = {"energy": 20.0, "forces": 10.0, "stress": 1.0}


def parse_targets(text: str) -> dict[str, float | None]:
    """{name: weight, None where none is given} of "energy:1,forces:10,stress:1", "forces" or "gap,charges:0.5".

    Raises:
      InputError: an empty name, a name twice, or a weight that is no positive number.
    """
    targets: dict[str, float | None] = {}
    for part in text.split(","):
        name, colon, number = (word.strip() for word in part.partition(":"))
        if not name or name in targets:
            what = f"names {name} twice" if name else "has an empty name"
            raise InputError(f"--targets {text!r} {what}; write for example energy:1,forces:10")
        targets[name] = _weight(text, number) if colon else None
    return targets


def _weight(text: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (0 < weight < math.inf):
        raise InputError(f"--targets {text!r}: {number!r} is no weight; give a positive number, or leave the name out")
    return weight


def potential_weights(targets: dict[str, float | None]) -> dict[str, float]:
    """The weights of a potential's targets, in a fixed order; {} for forces alone without a weight of their own."""
    if targets == {"forces": None}:
        return {}
    return {name: targets[name] or DEFAULT_WEIGHTS[name] for name in POTENTIAL if name in targets}
