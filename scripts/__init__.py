"""Makers of the data sets that ship with the package or that a document needs."""
