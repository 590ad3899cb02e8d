"""bench.against: checkouts are mounted as they are, two processes take turns, intervals hold the ratio."""

import pytest

from bench import against
from bench.checkout import mount

pytestmark = pytest.mark.slow


def test_a_ratio_lies_in_its_interval_and_says_where_it_is_too_slow():
    found = against.Ratio.of("a case", [2.0, 2.2, 2.1, 1.9, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0], 10)
    assert (found.ratio, found.pairs, found.here_us, found.there_us) == (2.0, 5, 2e5, 1e5)
    assert found.low <= found.ratio <= found.high
    assert "**above 1.05**" in found.line(1.05)
    assert "above" not in found.line(2.5)


def test_pairs_that_are_all_the_same_need_no_bootstrap():
    found = against.Ratio.of("a case", [1.0, 2.0], [1.0, 2.0], 1)
    assert (found.low, found.ratio, found.high) == (1.0, 1.0, 1.0)


def test_two_processes_of_this_checkout_take_turns():
    found = list(against.ratios(against.ROOT, 2, None, 1, "step, toy"))
    assert [one.name for one in found] == ["step, toy"]
    assert found[0].pairs == 2
    assert found[0].here_us > 0


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no sparse_dnm/__init__\.py; give the folder of a checkout"):
        mount(tmp_path)
    with pytest.raises(RuntimeError, match="mount a checkout in a new process"):
        mount(against.ROOT)
