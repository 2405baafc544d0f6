"""Chemical Similarity Index: squared Frechet distance between node-feature clouds, independent of any model.

Modules: `features` (npz in and out), `aggregation`, `sampling`, `moments`, `frechet`, `score` (the whole
procedure), `uncertainty`, `distances` (the table of them), `half_samples`, `per_element`, `selection`. `features`,
`aggregation`, `sampling`, `frechet` and `distances` import no JAX, so data workers may use them. Guide: docs/csi.md.
"""
