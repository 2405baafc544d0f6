"""Chemical Similarity Index: squared Frechet distance between node-feature clouds, independent of any model.

Modules: `features` (npz in and out), `aggregation`, `sampling`, `moments`, `frechet`, `score` (the whole
procedure), `uncertainty`, `distances`, `per_element`, `selection`. Only `moments` imports JAX, so data workers
may use the rest without it. Guide: docs/csi_library.md.
"""
