"""`make demo`: pretrain a small GemNet-OC on the data that ships with the package, in minutes on two cores.

    python -m experiments.demo [options of experiments.pretrain]
"""

import sys
import tempfile

from experiments import pretrain

SETTINGS = {
    "--upstream": "demo:organic",
    "--n": "all",
    "--epochs": "32",
    "--model": "gemnet_oc_tiny",
    "--batch-size": "20",
    "--batch-shapes": "1",  # compiling a second shape costs more than its padding saves in so short a run
    "--lr": "2e-3",
    "--val-every": "4",
}


def main(argv: list[str] | None = None) -> int:
    """Run the pretraining command with the demo's settings; later options win."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "--run-dir" not in given:
        given += ["--run-dir", tempfile.mkdtemp(prefix="jaxatoms-demo-")]
    settings = [word for pair in SETTINGS.items() if pair[0] not in given for word in pair]
    return pretrain.main(settings + given)


if __name__ == "__main__":
    raise SystemExit(main())
