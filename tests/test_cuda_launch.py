"""The parameters of a CUDA kernel as the driver reads them; a stand-in for the driver notes what it is given."""

import ctypes

import pytest
import torch

from sparse_dnm.engine.cuda_launch import _Prepared


class Driver:
    """Reads ``count`` parameters of eight bytes, as cuLaunchKernel would."""

    def __init__(self, count):
        self.count, self.calls = count, []

    def cuLaunchKernel(self, handle, *rest):
        *geometry, shared, stream, places, extra = rest
        words = [ctypes.string_at(places[k], 8) for k in range(self.count)]
        self.calls.append((handle.value, geometry, shared, stream, words, extra))
        return 0


def whole(word):
    return int.from_bytes(word, "little", signed=True)


def test_an_array_is_two_references_sizes_address_shape_and_strides():
    matrix, vector = torch.zeros(3, 5, dtype=torch.float32), torch.arange(4)
    driver = Driver(9 + 7)
    prepared = _Prepared(77, ((torch.float32, 2), (torch.int64, 1)), driver)
    assert prepared.launch(6, (32, 4), 99, (matrix, vector)) == 0
    handle, geometry, shared, stream, words, extra = driver.calls[0]
    assert (handle, geometry, shared, stream, extra) == (77, [6, 1, 1, 32, 4, 1], 0, 99, None)
    assert list(map(whole, words)) == [
        *(0, 0, 15, 4, matrix.data_ptr(), 3, 5, 20, 4),
        *(0, 0, 4, 8, vector.data_ptr(), 4, 8),
    ]


@pytest.mark.parametrize(
    ("value", "ctype"), [(True, ctypes.c_bool), (-(2**62), ctypes.c_int64), (0.1, ctypes.c_double)]
)
def test_a_scalar_is_read_as_its_type(value, ctype):
    driver = Driver(1)
    _Prepared(1, (type(value),), driver).launch(1, (1, 1), 0, (value,))
    (word,) = driver.calls[0][4]
    assert ctype.from_buffer_copy(word).value == value


def test_a_second_launch_passes_its_own_values():
    driver = Driver(1)
    prepared = _Prepared(1, (int,), driver)
    for value in (3, 4):
        prepared.launch(1, (1, 1), 0, (value,))
    assert [whole(call[4][0]) for call in driver.calls] == [3, 4]
