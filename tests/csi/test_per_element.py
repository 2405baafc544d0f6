"""Per-element CSI against the plain CSI of the element's rows."""

import numpy as np
import pytest

from jaxatoms.csi.features import FeatureSet
from jaxatoms.csi.per_element import coverage, element_moments, per_element_csi, weighted_csi
from jaxatoms.csi.score import chemical_similarity_index
from jaxatoms.types import InputError


def cloud(shift, elements, seed):
    rng = np.random.default_rng(seed)
    z = rng.choice(elements, 600)
    return (rng.standard_normal((600, 4)) + shift * (z == 8)[:, None]).astype(np.float32), z


def test_each_element_equals_csi_of_its_rows_and_missing_ones_are_nan():
    (x, zx), (y, zy) = cloud(0, [1, 6, 8], 0), cloud(3, [6, 8, 8, 26], 1)
    scores = {s.atomic_number: s for s in per_element_csi(element_moments(x, zx), element_moments(y, zy))}
    assert set(scores) == {6, 8, 26} and np.isnan(scores[26].csi) and scores[26].n_upstream == 0
    for z in (6, 8):
        pair = [FeatureSet(f[e == z], np.arange((e == z).sum())) for f, e in ((x, zx), (y, zy))]
        np.testing.assert_allclose(scores[z].csi, chemical_similarity_index(*pair), rtol=1e-9)
    assert scores[8].csi > 10 * scores[6].csi


def test_summary_weighs_by_downstream_atoms():
    (x, zx), (y, zy) = cloud(0, [6, 8], 0), cloud(1, [6, 8, 26], 1)
    scores = per_element_csi(element_moments(x, zx), element_moments(y, zy))
    np.testing.assert_allclose(coverage(scores), np.mean(zy != 26))
    known = [s for s in scores if s.atomic_number != 26]
    expected = sum(s.csi * s.n_downstream for s in known) / sum(s.n_downstream for s in known)
    np.testing.assert_allclose(weighted_csi(scores), expected)


def test_lengths_are_checked():
    with pytest.raises(InputError, match="2 feature rows but 3 atomic numbers"):
        element_moments(np.ones((2, 2)), np.ones(3, int))
