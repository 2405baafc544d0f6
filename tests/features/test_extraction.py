"""Which structures an extraction reads."""

from types import SimpleNamespace

import numpy as np

from jaxatoms.features.extraction import Request, choose_records


def test_elements_of_a_large_set_are_looked_at_in_parts():
    """All at once, four million structures would need 6 GB for the counts of their elements."""
    n, looked_at = 50_000, []
    heavy = np.arange(0, n, 1000)

    def element_counts(records):
        looked_at.append(len(records))
        counts = np.zeros((len(records), 121), np.int32)
        counts[np.isin(records, heavy), 110] = 1
        return counts

    store = SimpleNamespace(element_counts=element_counts, n_node=np.where(np.arange(n) == 7, 3, 9))
    request = Request(dataset="x", n="all")
    records, replaced = choose_records(store, np.arange(n), np.zeros(n, int), request, num_elements=100)
    assert replaced == len(heavy) + 1 and max(looked_at) < 20_000
    np.testing.assert_array_equal(np.sort(records), np.setdiff1d(np.arange(n), [*heavy, 7]))
