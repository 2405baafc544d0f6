"""Where a result came from: code, versions, device, command and time. No host or user names."""

import importlib.metadata
import platform
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

import jaxatoms

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_ROOT = Path(__file__).resolve().parents[2]


def provenance() -> dict[str, Any]:
    """What a run folder should say about its origin; starts the JAX backend.

    "commit" and "dirty" (tracked files differ from the commit) are None outside a git checkout; "version"
    is the package's own.
    """
    devices = jax.devices()
    return {
        "version": jaxatoms.__version__,
        **_git_state(_ROOT),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def peak_memory_gib() -> dict[str, float]:
    """Peak memory of this process so far: {"host": GiB} and, on an accelerator, "device" (the fullest)."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB on Linux
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    return peak | ({"device": max(used) / 2**30} if used else {})


def _git_state(root: Path) -> dict[str, Any]:
    """Commit of the checkout whose top is `root`, not of one the package merely lies inside."""
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"commit": None, "dirty": None}
    changes = _git(root, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
