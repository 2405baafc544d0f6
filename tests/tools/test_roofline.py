"""The least time of launches."""

import pytest

from jaxatoms.tools import chips, hlo, roofline

H200 = chips.CHIPS["h200"]


def _launch(n_bytes: float = 0, **products: float) -> hlo.Operation:
    return hlo.Operation("f", "fusion", hlo.OTHER, False, n_bytes, products)


def test_a_launch_takes_the_longer_of_its_traffic_and_its_arithmetic():
    assert roofline.launch_seconds(_launch(4.8e9), H200) == pytest.approx(1e-3)
    assert roofline.launch_seconds(_launch(4.8e9, bfloat16=989e10), H200) == pytest.approx(1e-2)


def test_arithmetic_takes_the_rate_of_its_precision():
    assert roofline.product_seconds({"float32": 67e9, "tf32": 494e9, "bfloat16": 989e9}, H200) == pytest.approx(3e-3)
    with pytest.raises(KeyError):
        roofline.product_seconds({"float8": 1.0}, H200)


def test_launches_follow_each_other_and_none_is_shorter_than_the_floor():
    launched = [_launch(4.8e9), _launch(4.8e3), _launch(4.8e3)]
    assert roofline.launches_seconds(launched, H200) == pytest.approx(1e-3 + 2e-9)
    assert roofline.launches_seconds(launched, H200, roofline.LAUNCH_FLOOR) == pytest.approx(1e-3 + 4e-6)


def test_devices_that_share_a_chip_share_its_peaks():
    v4 = chips.CHIPS["v4"]
    assert roofline.product_seconds({"bfloat16": 275e12}, v4) == pytest.approx(2)
    assert roofline.memory_seconds(1.228e12, v4) == pytest.approx(2)


def test_one_device_has_nothing_to_sum_over():
    assert roofline.ring_seconds(1e9, 1, H200) == 0
    assert roofline.ring_seconds(450e9, 8, H200) == pytest.approx(2 * 7 / 8)
