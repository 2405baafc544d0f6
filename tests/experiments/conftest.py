"""A finished pretraining run of a model that is just large enough to have every part."""

import json

import pytest

from experiments import pretrain

NANO = {
    "num_blocks": 1, "emb_size_atom": 8, "emb_size_edge": 8, "emb_size_trip_in": 4, "emb_size_trip_out": 4,
    "emb_size_quad_in": 4, "emb_size_quad_out": 4, "emb_size_aint_in": 4, "emb_size_aint_out": 4, "emb_size_rbf": 4,
    "emb_size_cbf": 4, "emb_size_sbf": 4, "num_spherical": 2, "num_radial": 16, "num_before_skip": 0,
    "num_after_skip": 0, "num_concat": 0, "num_atom": 0, "num_output_afteratom": 0, "num_atom_emb_layers": 0,
    "num_global_out_layers": 0,
}  # fmt: skip


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """A JSON file of dimensions; JAXATOMS_CACHE points beside it for the whole session."""
    folder = tmp_path_factory.mktemp("nano")
    (folder / "nano.json").write_text(json.dumps(NANO))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXATOMS_CACHE", str(folder / "cache"))
        yield folder / "nano.json"


@pytest.fixture(scope="session")
def nano_run(nano):
    """The folder of a finished run of 8 steps."""
    run_dir = nano.parent / "pretrained"
    options = {
        "--upstream": "demo:organic", "--n": "40", "--epochs": "2", "--batch-size": "10", "--batch-shapes": "1",
        "--model": str(nano), "--val-samples": "20", "--val-every": "2", "--run-dir": str(run_dir),
    }  # fmt: skip
    assert pretrain.main([word for pair in options.items() for word in pair] + ["--quiet"]) == 0
    return run_dir
