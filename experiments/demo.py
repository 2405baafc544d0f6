"""`make demo`: select, pretrain, fine-tune and compare on the data that ships with the package.

    python -m experiments.demo [options of experiments.study]

Three candidate upstream sets, their mixture and a start from scratch compete for one task under a small equal budget.
Everything printed at the end is computed in this run.
"""

import sys
import tempfile

from experiments import study

SETTINGS = {
    "--upstream": ["demo:organic", "demo:reaction", "demo:oxide"],
    "--downstream": ["demo:aspirin"],
    "--n": ["240"],
    "--epochs": ["6"],
    "--cutoff": ["8"],  # the oxides' default of 12 A and 30 neighbours would take twice as long
    "--max-neighbors": ["20"],
    "--pretrain-lr": ["2e-3"],
    "--pretrain-shapes": ["1"],
    "--finetune-steps": ["120"],
    "--finetune-lr": ["2e-3"],
    "--n-train": ["100"],
    "--n-val": ["50"],
    "--forces": ["direct"],  # gradient forces are better and take a minute to compile
    "--test-samples": ["200"],
    "--csi-n": ["150"],
    "--jobs": ["2"],
}


def main(argv: list[str] | None = None) -> int:
    """Run the study with the demo's settings; later options win."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "--out" not in given:
        given += ["--out", tempfile.mkdtemp(prefix="jaxatoms-demo-")]
    settings = [word for name, values in SETTINGS.items() if name not in given for word in (name, *values)]
    return study.main(settings + given)


if __name__ == "__main__":
    raise SystemExit(main())
