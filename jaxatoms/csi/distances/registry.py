"""The distances that there are, by name."""

import difflib

from jaxatoms.csi.distances.distance import Distance
from jaxatoms.csi.distances.energy import ENERGY
from jaxatoms.csi.distances.gaussian import COVARIANCE, FRECHET, MEAN
from jaxatoms.csi.distances.kernel import MMD, MMD_LINEAR
from jaxatoms.types import InputError

DISTANCES: dict[str, Distance] = {d.name: d for d in (FRECHET, MEAN, COVARIANCE, MMD_LINEAR, MMD, ENERGY)}


def register(distance: Distance):
    """Make a distance known by its name.

    Raises:
      ValueError: the name or the title is taken.
    """
    for known in DISTANCES.values():
        if distance.name == known.name or distance.title == known.title:
            raise ValueError(f"{distance.name} ({distance.title}) has the name or title of the distance {known.name}")
    DISTANCES[distance.name] = distance


def find_distance(name: str) -> Distance:
    """The distance of that name.

    Raises:
      InputError: there is none; the nearest name is given.
    """
    if name not in DISTANCES:
        near = difflib.get_close_matches(name, DISTANCES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown distance {name!r}; {hint}use one of {', '.join(DISTANCES)}")
    return DISTANCES[name]
