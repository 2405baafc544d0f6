"""features.npz: round trip and every complaint."""

import numpy as np
import pytest

from jaxatoms.csi.features import FeatureSet, check_features, check_same_width, load_features, save_features
from jaxatoms.types import InputError


def good(n=6, d=3):
    rng = np.random.default_rng(0)
    return FeatureSet(
        rng.standard_normal((n, d)).astype(np.float32),
        np.arange(n) // 2,
        np.array([f"C{i // 2}" for i in range(n)]),
        np.full(n, 6, np.uint8),
    )


def test_round_trip_keeps_all_arrays(tmp_path):
    save_features(tmp_path / "f.npz", good())
    back = load_features(tmp_path / "f.npz")
    for a, b in zip(good()[:4], back[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    assert back.class_of_structure().tolist() == ["C0", "C1", "C2"]


def test_class_and_element_are_optional(tmp_path):
    save_features(tmp_path / "f.npz", good()._replace(classes=None, element=None))
    back = load_features(tmp_path / "f.npz")
    assert back.classes is None and back.element is None
    with pytest.raises(InputError, match="has no classes"):
        back.class_of_structure()


def broken():
    base = good()
    nan = base.features.copy()
    nan[3, 1] = np.nan
    return {
        "structure 1 has NaN": base._replace(features=nan),
        "1 feature rows, need at least 2": FeatureSet(base.features[:1], base.structure[:1]),
        "0 feature rows, need at least 2": FeatureSet(base.features[:0], base.structure[:0]),
        "all 6 feature rows are equal": base._replace(features=np.ones((6, 3))),
        "expected floats": base._replace(features=np.ones((6, 3), int)),
        r"shape \(6,\), expected floats": base._replace(features=np.ones(6)),
        "'structure' has shape": base._replace(structure=np.arange(5)),
        "'class' has shape": base._replace(classes=np.array(["a"])),
        "expected integers": base._replace(structure=np.arange(6.0)),
    }


@pytest.mark.parametrize("message", list(broken()))
def test_bad_features_are_refused_in_one_line(message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        check_features(broken()[message])
    assert "\n" not in str(error.value)


def test_one_dead_channel_is_allowed():
    data = good()
    data.features[:, 0] = 0
    assert check_features(data) is data


def test_different_widths_are_refused():
    with pytest.raises(InputError, match="a has 3 features per row but b has 4"):
        check_same_width(good()._replace(name="a"), good(d=4)._replace(name="b"))


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "lacks.npz", features=np.ones((2, 2)))
    np.savez(tmp_path / "objects.npz", features=np.array([None, {}], object), structure=np.arange(2))
    for name, message in (
        ("none", "not a readable"),
        ("text", "not a readable"),
        ("objects", "not a readable"),
        ("lacks", "lacks array 'structure'"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load_features(tmp_path / f"{name}.npz")
        assert "\n" not in str(error.value)
