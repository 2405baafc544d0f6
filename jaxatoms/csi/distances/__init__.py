"""Distances between feature clouds, and the one table of them that `experiments.csi --distance` reads.

`distance` says what a distance is and `registry` which there are. One file a family: `gaussian` (from moments),
`kernel` and `energy` (from rows; `pairs` has the sums over pairs of rows). NumPy alone. How to add one:
docs/how-to/distance.md.
"""
