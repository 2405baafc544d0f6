"""PyTorch checkpoints of known layouts -> arrays under our checkpoint names, with an account of every key.

Known: JMP's GemNet-OC and the paper's own Lightning files, fairchem v1 GemNet-OC, EquiformerV2 of fairchem and of the
paper's code (also with DeNS heads). What a file is, is decided by its keys; nothing is guessed from its name.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxatoms.interop.torch_file import TorchFile
from jaxatoms.models.architecture import Config
from jaxatoms.models.equiformer_v2.shapes import equiformer_config
from jaxatoms.models.gemnet_oc.shapes import gemnet_config
from jaxatoms.pickles.unpickler import TensorRef
from jaxatoms.types import InputError

WEIGHTS = ("ema", "raw", "reference")
JMP_TASKS = ("oc20", "oc22", "ani1x", "transition1x")  # order of the heads of jmp-s.pt and jmp-l.pt
# EquiformerV2's buffers, repeated below every block.
_BUFFER = r"(^|\.)(SO3_grid|SO3_rotation|mappingReduced|expand_index|balance_degree_weight|distance_expansion)(\.|$)"
_BUFFERS = {
    "gemnet_oc": r"rbf\.(offset|temps)$|^task_steps",
    "equiformer_v2": _BUFFER + r"|\.(rotation|to_grid_mat|from_grid_mat)$",
}
_ALIAS = re.compile(r"\.seq_energy_pre\.")
_DENS = ("denoising_pos_block.", "energy_lin_ref", "force_embedding.", "noise_level_embedding.")


class KeyRecord(NamedTuple):
    """What became of a key of the file."""

    key: str
    shape: tuple[int, ...]
    fate: str  # "loaded", "moving average", "alias", "buffer" or "head dropped"
    name: str  # ours, or what it is an alias of


class Converted(NamedTuple):
    """A checkpoint under our names."""

    layout: str  # "jmp", "fairchem_gemnet_oc", "equiformer_v2"
    config: Config
    arrays: dict[str, np.ndarray]  # float32, in the checkpoint's layout
    n_task: int  # complete pairs of heads among the arrays
    weights: str  # "ema", "raw" or "reference"
    table: list[KeyRecord]
    scales: dict[str, float]  # energy_mean, energy_std, force_std where the file has them


def convert(file: TorchFile, weights: str | None = None) -> Converted:
    """Read a checkpoint of a known layout.

    Args:
      weights: "ema", "raw", "reference" (as the reference's fine-tuning loads JMP files: the moving average
        everywhere except in the layers that have an alias); None: the average where the file has one.

    Raises:
      InputError: an unknown layout, a key that is unknown or missing, shapes that disagree, no moving average.
    """
    state = _state_dict(file)
    layout, names = _rename(file, state)
    kind = "equiformer_v2" if layout == "equiformer_v2" else "gemnet_oc"
    chosen, averages = _choose(file, state, kind, weights)
    config = _config(file, {names[key]: tensor.shape for key, tensor in state.items()}, kind)
    heads = tuple(_complete_heads(names.values(), layout))
    arrays, table = {}, []
    for key, name in names.items():
        fate = _fate(key, name, kind, heads)
        if fate == "loaded":
            raw = key not in averages or (chosen == "reference" and _alias_of(key) in state)
            arrays[name] = _float32(file, state[key] if raw else averages[key], key)
            fate = "loaded" if raw else "moving average"
        elif fate == "alias":
            _check_alias(file, key, state)
        table.append(KeyRecord(key, state[key].shape, fate, name))
    return Converted(layout, config, arrays, len(heads) // 2, chosen, table, _scales(file))


def _choose(file: TorchFile, state: Mapping[str, TensorRef], kind: str, weights: str | None):
    """Which weights to take, and the averages by key ({} for raw weights)."""
    ema = _moving_average(file)
    chosen = weights or ("ema" if ema else "raw")
    if chosen not in WEIGHTS:
        raise InputError(f"--weights must be {', '.join(WEIGHTS)}, got {chosen!r}")
    if chosen == "raw":
        return chosen, {}
    if not ema:
        raise InputError(f"{file.path} has no moving average (optimizer_states[0]['ema']); use --weights raw")
    return chosen, _assign(file, list(state), ema, state, kind)


def _config(file: TorchFile, shapes: Mapping[str, tuple[int, ...]], kind: str) -> Config:
    if kind == "gemnet_oc":
        return gemnet_config(shapes, str(file.path))
    config = equiformer_config(shapes, _recorded_settings(file.content), str(file.path))
    if isinstance(file.content, dict) and "pytorch-lightning_version" in file.content:
        # The paper's own runs feed vectors from source to target (docs/reference/equiformer_v2.md, Edge direction).
        return dataclasses.replace(config, edge_direction="source_to_target")
    return config


def _state_dict(file: TorchFile) -> dict[str, TensorRef]:
    content = file.content
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    tensors = {k: v for k, v in state.items() if isinstance(v, TensorRef)} if isinstance(state, dict) else {}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise InputError(f"{file.path} holds no state_dict of named tensors; give a model's checkpoint")
    return tensors


def _moving_average(file: TorchFile) -> list[TensorRef] | None:
    """Lightning's `optimizer_states[0]["ema"]`, if there."""
    states = file.content.get("optimizer_states") if isinstance(file.content, dict) else None
    first = states[0] if isinstance(states, list | tuple) and states else None
    ema = first.get("ema") if isinstance(first, dict) else None
    return list(ema) if isinstance(ema, list | tuple) and ema else None


def _assign(file, keys: list[str], ema: list, state: Mapping[str, TensorRef], kind: str) -> dict[str, TensorRef]:
    """The averages by key: they are stored without names, in the order of the parameters.

    Source: docs/reference/gemnet_oc.md, Moving average.
    """
    skipped = re.compile(_BUFFERS[kind] + r"|scale_factor$|\.seq_energy_pre\.")
    names = [key for key in keys if not skipped.search(key)]
    if len(names) != len(ema):
        raise InputError(f"{file.path}: {len(ema)} averages for {len(names)} parameters; use --weights raw")
    for name, average in zip(names, ema, strict=True):
        if not isinstance(average, TensorRef) or average.shape != state[name].shape:
            found = getattr(average, "shape", type(average).__name__)
            raise InputError(
                f"{file.path}: the average of {name} has shape {found}, the weight {state[name].shape}; "
                "use --weights raw"
            )
    return dict(zip(names, ema, strict=True))


def _rename(file: TorchFile, state: Mapping[str, TensorRef]) -> tuple[str, dict[str, str]]:
    """The layout, and our name of every key."""
    plain = {key: re.sub(r"^(module\.)+", "", key) for key in state}
    names = plain.values()
    if any(re.match(r"(backbone\.)?blocks\.0\.ga\.", name) for name in names):
        return "equiformer_v2", {key: _equiformer_name(name) for key, name in plain.items()}
    if any(name.startswith("backbone.bases.") for name in names):
        return "jmp", {key: _jmp_name(name) for key, name in plain.items()}
    if any(re.match(r"(backbone\.)?int_blocks\.0\.", name) for name in names):
        return "fairchem_gemnet_oc", {key: _fairchem_name(name) for key, name in plain.items()}
    raise InputError(
        f"{file.path} is of an unknown architecture (keys like {min(names)!r}); known are GemNet-OC of JMP and of "
        "fairchem v1, and EquiformerV2"
    )


def _jmp_name(name: str) -> str:
    return "embedding.atom_embedding.weight" if name == "embedding.weight" else name


def _fairchem_name(name: str) -> str:
    name = name.removeprefix("backbone.")
    if name.startswith("atom_emb."):
        return "embedding.atom_embedding.weight"
    if re.match(r"(output_heads|out_energy|out_forces)\.", name):
        return name
    name = re.sub(r"^out_mlp_([EF])\.", r"out_mlp_\1.out_mlp.", name)
    return f"backbone.bases.{name}" if re.match(r"mlp_|edge_emb\.|.*radial_basis", name) else f"backbone.{name}"


def _equiformer_name(name: str) -> str:
    name = name.removeprefix("backbone.")
    return re.sub(r"^output_heads\.(energy|forces)\.", "", name)


def _fate(key: str, name: str, kind: str, heads: tuple[str, ...]) -> str:
    if re.search(_BUFFERS[kind], key):
        return "buffer"
    if kind == "gemnet_oc" and _ALIAS.search(key):
        return "alias"
    if name.startswith(_DENS if kind == "equiformer_v2" else ("out_energy.", "out_forces.", "output_heads.")):
        return "head dropped"
    is_head = name.startswith(("output.", "energy_block.", "force_block."))
    return "head dropped" if is_head and not name.startswith(heads) else "loaded"


def _complete_heads(names, layout: str) -> list[str]:
    """Prefixes of the head pairs that our model has: energy and force head of every task, numbered from 0."""
    found = list(names)
    if layout == "equiformer_v2":
        pair = ["energy_block.", "force_block."]
        return pair if all(any(n.startswith(p) for n in found) for p in pair) else []
    out: list[str] = []
    for task in range(len(found)):
        pair = [f"output.{kind}.{task}." for kind in ("out_energy", "out_forces")]
        if not all(f"{prefix}8.weight" in found for prefix in pair):
            break
        out += pair
    return out


def _alias_of(key: str) -> str:
    """The second name of a layer of an output block; "" for keys that have none."""
    name = re.sub(r"(out_blocks\.\d+)\.layers\.", r"\1.seq_energy_pre.", key)
    return "" if name == key else name


def _check_alias(file: TorchFile, key: str, state: Mapping[str, TensorRef]):
    """An alias must hold what it is an alias of, else one of the two would be lost."""
    twin = _ALIAS.sub(".layers.", key)
    if twin not in state:
        raise InputError(f"{file.path}: {key} has no counterpart {twin}; the file is incomplete")
    if state[twin] != state[key] and not np.array_equal(file.read(state[twin]), file.read(state[key])):
        raise InputError(f"{file.path}: {key} differs from {twin}, which must be the same parameter")


def _float32(file: TorchFile, tensor: TensorRef, key: str) -> np.ndarray:
    array = file.read(tensor)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(f"{file.path}: {key} holds {array.dtype}, expected floats")
    return array.astype(np.float32)


def _recorded_settings(content: Any) -> dict[str, Any]:
    """The model's settings as fairchem saves them, flattened; {} where there are none."""
    found: dict[str, Any] = {}

    def visit(value: Any, depth: int):
        if type(value) is dict and depth < 6:
            for key, item in value.items():
                if isinstance(item, int | float | str) and isinstance(key, str):
                    found.setdefault(key, item)
                visit(item, depth + 1)

    if isinstance(content, dict):
        config = content.get("config")
        model = config.get("model_attributes", config.get("model")) if type(config) is dict else None
        visit(model, 0)
    return found


def _scales(file: TorchFile) -> dict[str, float]:
    """Means and standard deviations from fairchem's `normalizers`."""
    normalizers = file.content.get("normalizers") if isinstance(file.content, dict) else None
    known = normalizers if type(normalizers) is dict else {}
    out: dict[str, float] = {}
    for names, kind in ((("target", "energy"), "energy"), (("grad_target", "forces"), "force")):
        for name in names:
            found = known.get(name)
            entry = found if type(found) is dict else {}
            for field in ("mean", "std"):
                value = entry.get(field)
                if isinstance(value, TensorRef) and int(np.prod(value.shape)) == 1:
                    out[f"{kind}_{field}"] = float(file.read(value).reshape(()))
    return out
