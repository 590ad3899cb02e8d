"""Generated settings, topologies, tables, arrays, checkpoints and profiles: read as they are, or refused in words.

`python -m bench.reliability` tries a hundred thousand of each.
"""

import pytest

from bench import cases


@pytest.mark.parametrize("kind", cases.CASES)
def test_of_generated_inputs_each_is_read_as_it_is_or_refused_in_words(kind):
    assert cases.run(kind, 30) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", cases.CASES)
def test_so_it_is_with_many_of_them(kind):
    cases.run(kind, 700, seed=1)
