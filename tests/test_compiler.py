"""Parts of kernels stay LLVM's code; a task stays a function."""

import re

import numpy as np
import pytest
from sparse_dnm.kernels.jit import inner, kernel, task


@inner
def doubled(x):
    return x + x


@task
def tripled(x):
    return doubled(x) + x


def total(values):
    """Sum of three times each number."""
    out = 0.0
    for k in range(values.size):
        out += tripled(values[k])
    return out


@pytest.fixture(scope="module")
def compiled():
    return kernel(total)


def test_a_task_is_called_and_an_inner_function_is_gone(compiled):
    assert compiled(np.arange(5.0)) == 30.0
    if not compiled.stats.cache_hits:  # code that was loaded cannot be looked at
        (code,) = compiled.inspect_asm().values()
        assert re.search(r"^_ZN.*tripled.*:$", code, re.MULTILINE)
        assert not re.search(r"^_ZN.*doubled.*:$", code, re.MULTILINE)


def test_a_part_says_that_it_cannot_be_called(compiled):
    assert compiled(np.arange(2.0)) == 3.0
    for part in (doubled, tripled):
        with pytest.raises(TypeError, match="is a part of kernels"):
            part(1.0)
