"""What fine-tuning a part of a network, energies beside forces, and pretraining do on real data, with small networks.

    python -m benchmarks.finetuning_study --data DATA --out runs/finetuning_study --parts acac 3bpa rmd17 stress

DATA holds the folders acac and 3bpa of the BOTNet data sets (arXiv 2205.06643), rmd17, ani1x_like and mptrj_inorganic
(of which crystals at finite temperature and pressure are taken). One network is pretrained on ani1x_like. Every variant
is fine-tuned from it (or from scratch) with several seeds, and tested on structures of the training temperature and of
others. Writes one JSON line a run; a run that is there is not made again.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np

PRETRAINING = "ani1x_like/ani1x_like.h5"
SETTINGS = [
    "--n-train", "250", "--n-val", "30", "--split", "record", "--batch-size", "5", "--batch-shapes", "1", "--cutoff",
    "6", "--max-neighbors", "30", "--test-samples", "100", "--val-samples", "30", "--quiet",
]  # fmt: skip
# Name: options beside those of every run. "scratch" starts from random weights.
VARIANTS = {
    "scratch": [], "full": [], "heads": ["--train", "heads"], "lora": ["--train", "lora:4"],
    "replay": ["--replay", "{pretraining}", "--replay-share", "0.2"],
}  # fmt: skip
WEIGHTS = {"forces": "forces", "energy:1,forces:10": "energy:1,forces:10", "energy:20,forces:10": "energy:20,forces:10",
           "energy:100,forces:10": "energy:100,forces:10"}  # fmt: skip
SCRATCH = ["--init", "scratch", "--model", "gemnet_oc_nano", "--smooth-quadruplets", "no"]  # as the pretrained network
STRESS = {f"stress:{weight}": f"energy:20,forces:10,stress:{weight}" for weight in ("1e-6", "0.1", "1", "10")}
CRYSTALS = "mptrj_inorganic/mpf-TP.extxyz"
SETS = {
    "acac": ("acac/train_300K.xyz,{data}/acac/isolated_atoms.xyz",
             {"300 K": "acac/test_MD_300K.xyz", "600 K": "acac/test_MD_600K.xyz"}),
    "3bpa": ("3bpa/train_300K.xyz,{data}/3bpa/iso_atoms.xyz", {"mixed": "3bpa/train_mixedT.xyz"}),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m benchmarks.finetuning_study`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and of results.jsonl")
    parser.add_argument("--parts", nargs="+", default=["acac", "3bpa", "rmd17", "stress"], choices=list(PARTS),
                        help="which comparisons are made")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted from 0")
    parser.add_argument("--steps", type=int, default=600, help="fine-tuning steps of every run")
    parser.add_argument("--pretrain-steps", type=int, default=3000, help="steps of the network that is pretrained")
    parser.add_argument("--lr", default="2e-3", help="learning rate of every fine-tuning run")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    start = pretrained(args)
    for seed in range(args.seeds):
        for part in args.parts:
            PARTS[part](args, start, seed)
    return 0


def pretrained(args) -> Path:
    """The run folder of the network that the others start from."""
    run, data = args.out / "pretrained", args.data / PRETRAINING
    if not (run / "summary.json").exists():
        command("experiments.pretrain", "--upstream", f"ani1x@{data}", "--n", "all", "--epochs", "100", "--model",
                "gemnet_oc_nano", "--batch-size", "10", "--max-steps", args.pretrain_steps, "--lr", "2e-3",
                "--batch-shapes", "1", "--val-every", "5", "--run-dir", run, "--quiet")  # fmt: skip
    return run


def compare_parts(name: str, args, start: Path, seed: int):
    """Which part of the network is trained: errors on test structures of every temperature."""
    train, tests = SETS[name]
    source = f"file:{args.data}/{train.format(data=args.data)}"
    for variant, options in VARIANTS.items():
        own = SCRATCH if variant == "scratch" else ["--init", start]
        key = {"set": name, "variant": variant, "seed": seed, "steps": args.steps, "lr": args.lr}
        options = [word.format(pretraining=f"ani1x@{args.data}/{PRETRAINING}") for word in options]
        words = ["--downstream", source, "--targets", "energy:20,forces:10", *own, *options]
        record(args, key, words, {label: args.data / file for label, file in tests.items()})


def compare_targets(args, start: Path, seed: int):
    """Forces alone against forces and energies with several weights, on two molecules."""
    for molecule in ("aspirin", "ethanol"):
        for label, targets in WEIGHTS.items():
            key = {"set": f"rmd17:{molecule}", "variant": label, "seed": seed, "steps": args.steps, "lr": args.lr}
            words = ["--downstream", f"file:{converted(args, molecule)}", "--targets", targets, "--init", start]
            record(args, key, words, {"test": None})


def compare_stress(args, _: Path, seed: int):
    """Weights of the stress beside energies and forces, on crystals, from scratch; the smallest one teaches nothing.

    Errors are those of the run's own test on its last weights.
    """
    for label, targets in STRESS.items():
        key = {"set": "crystals", "variant": label, "seed": seed, "steps": args.steps, "lr": args.lr}
        words = ["--downstream", f"file:{args.data}/{CRYSTALS}", "--targets", targets, "--init", "scratch", "--model",
                 "gemnet_oc_nano"]  # fmt: skip
        record(args, key, words, {})


PARTS = {
    "acac": functools.partial(compare_parts, "acac"),
    "3bpa": functools.partial(compare_parts, "3bpa"),
    "rmd17": compare_targets,
    "stress": compare_stress,
}


def converted(args, molecule: str) -> Path:
    """rMD17's npz as extended XYZ, in eV and A."""
    path = args.out / f"{molecule}.extxyz"
    if not path.exists():
        raw = np.load(args.data / "rmd17" / f"rmd17_{molecule}.npz")
        kcal = 1 / 23.060547830619026
        rows = zip(raw["coords"], raw["energies"], raw["forces"], strict=True)
        ase.io.write(path, [frame(raw["nuclear_charges"], *row, kcal) for row in rows])
    return path


def frame(numbers, positions, energy, forces, unit: float) -> ase.Atoms:
    """One labelled structure."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = ase.Atoms(numbers, positions)
    atoms.calc = SinglePointCalculator(atoms, energy=float(energy) * unit, forces=forces * unit)
    return atoms


def record(args, key: dict, words: list, tests: dict[str, Path | None]):
    """Fine-tune, test, and append a line, unless it is there."""
    results = args.out / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    if any(key.items() <= json.loads(line).items() for line in lines):
        return
    run = args.out / re.sub(r"[:, ]", "_", "-".join(map(str, key.values())))
    if not (run / "test.json").exists():
        command("experiments.finetune", *words, "--seed", key["seed"], "--max-steps", args.steps, "--lr", args.lr,
                *SETTINGS, "--run-dir", run)  # fmt: skip
    errors = {label: tested(run, file) for label, file in tests.items()}
    own = json.loads((run / "test.json").read_text())["last_ema"]
    quantities = {"forces": own} | {name: own[name] for name in ("energy", "stress") if name in own}
    errors["own"] = {name: {of: report[of] for of in ("mae", "mean_baseline_mae", "n")}
                     for name, report in quantities.items()}  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    line = key | {"errors": errors, "trained": summary["trained_parameters"], "parameters": summary["parameters"]}
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def tested(run: Path, file: Path | None) -> dict[str, float]:
    """MAE of forces (meV/A) and of energies (meV/atom) on a file; on the run's own test split where there is none."""
    source = run / "test.extxyz" if file is None else file
    if file is None:
        split = np.load(run / "data" / "split.npz")["test"]
        name = json.loads((run / "config.json").read_text())["downstream"].removeprefix("file:")
        frames = ase.io.read(name, ":")
        ase.io.write(source, [frames[i] for i in split[:300]])
    head = json.loads((run / "config.json").read_text())["downstream"]
    out = run / f"predicted-{source.stem}.extxyz"
    out.unlink(missing_ok=True)
    command("experiments.predict", "--checkpoint", f"{run}@last", "--task", head, "--structures", source, "--out", out,
            "--quiet")  # fmt: skip
    pairs = list(zip(ase.io.read(source, ":"), ase.io.read(out, ":"), strict=True))
    forces = np.concatenate([np.abs(one.get_forces() - two.get_forces()).ravel() for one, two in pairs])
    energies = [abs(one.get_potential_energy() - two.get_potential_energy()) / len(one) for one, two in pairs]
    return {"forces": 1000 * float(forces.mean()), "energy": 1000 * float(np.mean(energies)), "n": len(pairs)}


def command(*words):
    """Run a command of this package, and stop where it fails."""
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


if __name__ == "__main__":
    raise SystemExit(main())
