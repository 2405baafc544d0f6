"""Throughput-first pretraining and fine-tuning of atomic-property models in JAX, and the choice of data for it.

    import jaxatoms

    model = jaxatoms.load_model("runs/aspirin")
    energies = [found.energy for found in model.predict(list_of_atoms)]
    atoms.calc = jaxatoms.Calculator("runs/aspirin")
    jaxatoms.similarity("ani1x", "rmd17:aspirin", checkpoint="runs/mixed")

What is listed in `__all__` is public. Importing this package imports nothing else: each name loads what it needs.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Calculator": ("jaxatoms.ase", "JaxAtomsCalculator"),
    "InputError": ("jaxatoms.types", "InputError"),
    "Model": ("jaxatoms.api", "Model"),
    "Similarity": ("jaxatoms.api", "Similarity"),
    "from_graphs_tuple": ("jaxatoms.interop.jraph", "from_graphs_tuple"),
    "load_model": ("jaxatoms.api", "load_model"),
    "open_dataset": ("jaxatoms.api", "open_dataset"),
    "predict": ("jaxatoms.api", "predict"),
    "similarity": ("jaxatoms.api", "similarity"),
    "to_graphs_tuple": ("jaxatoms.interop.jraph", "to_graphs_tuple"),
    "with_predictions": ("jaxatoms.interop.jraph", "with_predictions"),
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
