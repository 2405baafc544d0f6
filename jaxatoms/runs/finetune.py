"""A whole fine-tuning run: training, the test at the end, and the closing words."""

import json
from pathlib import Path

from jaxatoms.data.subset import parse_count
from jaxatoms.inference import evaluation
from jaxatoms.inference.checkpoint_meta import read_checkpoint_meta
from jaxatoms.runs import finetune_report, fleet
from jaxatoms.runs.energy_zero import shift_of, with_shift
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.finetune_setup import prepare
from jaxatoms.runs.finetuning import Finetuning
from jaxatoms.runs.run import continue_with, train_run
from jaxatoms.runs.session import say


def finetune(config: FinetuneConfig, run_dir: Path, resumed: bool):
    """A whole fine-tuning run with its test, and its closing words."""
    run = prepare(config, run_dir)
    trained = train_run(run, run_dir, resumed)
    fleet.wait_for_all("checkpoints written")
    if trained.done < run.total_steps:
        print(continue_with(run, run_dir, trained.done))
        return
    if trained.summary is not None or _lacks_test(run, run_dir):
        test_run(run, run_dir, trained.params, trained.constants)
    fleet.wait_for_all("test written")
    _closing_words(run, run_dir)


def _closing_words(run: Finetuning, run_dir: Path):
    """The errors of the test, and a table of those before and after training."""
    names = [evaluation.result_name("test", i) for i in range(len(run.parts))]
    tests = [json.loads((run_dir / name).read_text()) for name in names]
    print("\n".join(map(evaluation.describe, tests)))
    summary = json.loads((run_dir / "summary.json").read_text())
    before = run_dir / "test_before.json"  # not there in runs of earlier versions
    starts = json.loads(before.read_text()) if before.exists() else [None] * len(tests)
    ends = [test["last_ema"] for test in tests]
    print(f"\n{finetune_report.comparison(summary, starts, ends)}\nrun folder: {run_dir}")


def _lacks_test(run: Finetuning, run_dir: Path) -> bool:
    """Whether a resumed run that had ended lacks a test of any data set, or has a smaller one."""
    wanted = [evaluation.draw(part.split.test, parse_count(run.config.test_samples)) for part in run.parts]
    found = [run_dir / evaluation.result_name("test", i) for i in range(len(wanted))]
    pairs = zip(found, wanted, strict=True)
    if all(file.is_file() and json.loads(file.read_text())["n_structure"] >= len(test) for file, test in pairs):
        say(f"the run has made all its {run.total_steps} steps and its test: there is nothing to do")
        return False
    say(f"the run has made all its {run.total_steps} steps: only the test remains")
    return True


def test_run(run: Finetuning, run_dir: Path, last_params, constants):
    """Errors on the test splits of the last and of the best averaged weights; writes test.json and plots."""
    assert run.forward is not None
    checkpoint = run_dir / "checkpoints" / "best"
    records = {"last_ema": run.checkpoint_meta().tasks, "best_ema": read_checkpoint_meta(checkpoint).tasks}
    weights = {"last_ema": last_params, "best_ema": run.averaged(checkpoint, last_params)}
    folder = fleet.output_dir(run_dir)
    for i, part in enumerate(run.parts):
        forwards = {name: with_shift(run.forward, params, constants, shift_of(part.task, records[name][i].reference))
                    for name, params in weights.items()}  # fmt: skip
        test = evaluation.draw(part.split.test, parse_count(run.config.test_samples))
        evaluation.assess(folder, "test", test, len(part.split.test), forwards, run.corpus, i, run.eval_shapes)
