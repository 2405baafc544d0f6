"""Energies and forces of structures from any ASE calculator or from a checkpoint, written as data sets."""
