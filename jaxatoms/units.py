"""Conversion constants to the internal units (eV, A), each with its source; no code."""

HARTREE = 27.211386024367243
"""eV per Hartree. Source: `ase.units.Hartree` (CODATA 2014), the constant of the ANI-1x conversion."""

BOHR = 0.5291772105638411
"""A per bohr. Source: `ase.units.Bohr` (CODATA 2014)."""

KCAL_PER_MOL = 1.0 / 23.061
"""eV per kcal/mol. Source: the factor of the reference's rMD17 and MD22 conversion (not
CODATA's 1/23.0605)."""

SPICE_HARTREE = 1.0 / 0.0367493
"""eV per Hartree. Source: the factor of the reference's SPICE conversion (CODATA differs in the sixth digit)."""

SPICE_BOHR = 0.529177
"""A per bohr. Source: the factor of the reference's SPICE conversion."""

QM9_HARTREE = 27.211386246
"""eV per Hartree. Source: the factor behind `qm9_v3.pt`."""
