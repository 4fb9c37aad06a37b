"""The statistics of the evidence: means with bootstrap intervals, and paired tests, over seeds."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytestmark = pytest.mark.benchmarks


@pytest.fixture(scope="module")
def statistics():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
        yield importlib.import_module("paired_statistics")


def test_the_interval_is_that_of_scipys_bootstrap(statistics):
    """Percentiles of the means of resamples, to what chance leaves; and the same every time."""
    values = np.random.default_rng(1).normal(90, 2, size=10)
    mean, low, high = statistics.estimate(values)
    by_scipy = stats.bootstrap([values], np.mean, method="percentile", n_resamples=50_000, rng=2).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((by_scipy.low, by_scipy.high), abs=0.1)
    assert statistics.estimate(values) == (mean, low, high)


@pytest.mark.parametrize("ties", [False, True])
def test_the_signed_rank_test_is_scipys(statistics, ties):
    """Exact, with and without ties and differences of 0."""
    for seed in range(5):
        differences = np.random.default_rng(seed).normal(0.5, 1, size=8)
        differences = differences.round() if ties else differences
        method = stats.PermutationMethod(n_resamples=math.inf) if ties else "exact"
        expected = stats.wilcoxon(differences, method=method).pvalue
        assert statistics.paired_test(differences) == pytest.approx(expected, rel=1e-12)


def test_differences_as_large_but_for_rounding_are_ties(statistics):
    """1 of 54 examples is 1.851 or 1.852 points in a record of three decimals: ranks must not tell them apart."""
    assert [*statistics.levels(np.array([1.851, -1.852, 0.001, 3.704, -1.852]))] == [1, -1, 0, 2, -1]
    # Of the 16 pairs of ranks 1.5, 1.5, 3 and 4, two are as far out as all four of one sign.
    assert statistics.signed_rank_test(np.array([1.851, 1.852, 3.704, 5.556])) == 2 / 16


def test_with_few_seeds_the_test_is_students(statistics):
    """Five seeds give no signed-rank p below 0.05."""
    differences = np.array([0.3, 0.5, 0.1, 0.4, 0.6])
    assert statistics.paired_test(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert statistics.paired_test(np.zeros(5)) == statistics.paired_test(np.zeros(10)) == 1
    assert statistics.paired_test(np.full(4, 0.5)) == 0


def test_holms_correction(statistics):
    """The smallest of four counts four times, the next three times, and none less than the one before."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.7, 0.9]) == [1, 1]
    assert statistics.holm([]) == []
