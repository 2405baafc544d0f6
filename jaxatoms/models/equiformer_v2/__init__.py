"""EquiformerV2: equivariant graph attention in edge frames (arXiv 2306.12059)."""
