"""Statistics of runs beside scipy's with the same resamples, beside the definitions, and numbers worked by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from envrl.statistics.aggregate import (
    area_under_curve,
    first_reaching,
    improvement_interval,
    interquartile_mean,
    mean,
    performance_profile,
    probability_of_improvement,
    profile_band,
    resampled_runs,
    stratified_bootstrap,
)
from envrl.statistics.paired import crossed_interval, difference_by_seed, mcnemar, sign_flip_test
from envrl.statistics.power import minimum_detectable_difference, power, seeds_needed

RNG = np.random.default_rng(7)
SCORES_RT = RNG.random((6, 3))
OTHERS_RT = RNG.random((5, 3))


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    """Of eight scores the two lowest and the two highest go: (3 + 4 + 5 + 10) / 4. Of five, one and one."""
    assert interquartile_mean(np.array([[1.0, 10.0], [2.0, 99.0], [3.0, 50.0], [4.0, 5.0]])) == pytest.approx(5.5)
    assert interquartile_mean(np.array([[0.0], [1.0], [2.0], [6.0], [50.0]])) == pytest.approx(3.0)
    flat = np.sort(SCORES_RT.ravel())
    assert interquartile_mean(SCORES_RT) == pytest.approx(np.mean(flat[4:14]), abs=1e-12)


def test_the_bootstrap_of_one_task_is_scipys() -> None:
    """The same generator draws the same resamples; scipy's percentile interval of the mean, to 1e-9."""
    scores = SCORES_RT[:, 0]
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=999, method="percentile", rng=np.random.default_rng(3), vectorized=True
    ).confidence_interval
    ours = stratified_bootstrap(scores[:, None], mean, None, 999, seed=3)
    assert ours == pytest.approx((np.mean(scores), theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
def test_the_stratified_bootstrap_draws_runs_for_each_task_by_itself(statistic: object) -> None:
    """As Agarwal et al. define it: one resample after the other, task by task, with the same indices."""
    chosen = resampled_runs(6, range(3), 200, np.random.default_rng(5))
    figures = []
    for indices in chosen:
        drawn = np.column_stack([SCORES_RT[indices[:, task], task] for task in range(3)])
        figures.append(np.mean(drawn) if statistic is mean else stats.trim_mean(drawn.ravel(), 0.25))
    expected = np.percentile(figures, [2.5, 97.5])
    found = stratified_bootstrap(SCORES_RT, mean if statistic is mean else interquartile_mean, None, 200, seed=5)
    assert found[1:] == pytest.approx(tuple(expected), abs=1e-12)
    assert not np.array_equal(chosen[..., 0], chosen[..., 1])


def test_tasks_of_one_stratum_are_drawn_together() -> None:
    """Two splits that mirror each other have one and the same mean in every run, so nothing varies; apart, it does."""
    scores = np.column_stack([SCORES_RT[:, 0], 1 - SCORES_RT[:, 0]])
    assert stratified_bootstrap(scores, mean, [0, 0]) == pytest.approx((0.5, 0.5, 0.5))
    apart = stratified_bootstrap(scores, mean)
    assert apart.low is not None
    assert apart.low < 0.49


def test_one_run_has_no_interval() -> None:
    assert stratified_bootstrap(np.array([[0.5]]), mean) == (0.5, None, None)
    assert improvement_interval(np.array([[0.5]]), OTHERS_RT[:, :1])[1:] == (None, None)
    assert profile_band(np.array([[0.5]]), [0.1]) is None
    assert difference_by_seed(np.array([0.1])) == (0.1, None, None)
    assert crossed_interval([np.array([[1.0, 0.0]])]) == (0.5, None, None)


def test_the_probability_of_improvement_is_mann_whitneys_statistic_over_its_largest() -> None:
    tied = np.round(OTHERS_RT, 1), np.round(SCORES_RT, 1)
    for x, y in [(SCORES_RT, OTHERS_RT), tied]:
        pairs = [stats.mannwhitneyu(x[:, t], y[:, t]).statistic / (len(x) * len(y)) for t in range(3)]
        assert probability_of_improvement(x, y) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert probability_of_improvement(np.array([[2.0], [3.0]]), np.array([[1.0], [2.0]])) == 0.875  # 3 wins, 1 tie
    low, high = improvement_interval(SCORES_RT, OTHERS_RT, None, 500)[1:]
    assert low is not None
    assert high is not None
    assert 0 <= low < probability_of_improvement(SCORES_RT, OTHERS_RT) < high <= 1


def test_a_performance_profile_is_what_the_empirical_distribution_leaves() -> None:
    levels = [-1.0, 0.1, 0.35, 0.5, 0.9, 2.0]
    expected = stats.ecdf(SCORES_RT.ravel()).sf.evaluate(levels)
    assert performance_profile(SCORES_RT, levels) == pytest.approx(expected, abs=1e-12)
    band = profile_band(SCORES_RT, levels, None, 300)
    assert band is not None
    assert np.all(band[0] <= expected)
    assert np.all(expected <= band[1])


def test_areas_and_levels_of_curves() -> None:
    """(0.2 + 0.4) / 2 over 10 and (0.4 + 0.5) / 2 over 30: (3 + 13.5) / 40."""
    curve = [(0.0, 0.2), (10.0, 0.4), (40.0, 0.5)]
    assert area_under_curve(curve) == pytest.approx(16.5 / 40)
    assert area_under_curve([(7.0, 0.3)]) == 0.3
    assert [first_reaching(curve, level) for level in (0.1, 0.4, 0.45, 0.51)] == [0.0, 10.0, 40.0, None]


def test_differences_by_seed_are_a_paired_t_test() -> None:
    x, y = SCORES_RT[:5, 0], OTHERS_RT[:, 0]
    theirs = stats.ttest_rel(x, y).confidence_interval()
    assert difference_by_seed(x - y)[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_sign_flips_are_scipys_permutations_of_pairs() -> None:
    """All 2^R signs; five differences of one sign are as far as any but their mirror image: 2 / 32."""
    differences = SCORES_RT[:, 0] - SCORES_RT[:, 1]
    theirs = stats.permutation_test(
        (differences,), lambda d: np.mean(d), permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert sign_flip_test(differences) == pytest.approx(theirs.pvalue, abs=1e-12)
    assert sign_flip_test(np.array([0.1, 0.2, 0.1, 0.3, 0.2])) == 2 / 32
    many = sign_flip_test(np.full(20, 0.1), 999)
    assert 0 < many < 0.01


def test_mcnemar_counts_what_one_side_won_alone() -> None:
    """Of eight games two are won by the first alone, five by the other; p of 2 of 7: 2 (1 + 7 + 21) / 128."""
    ours = np.array([[1, 1, 0, 0], [0, 0, 0, 1]])
    theirs = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert mcnemar(ours, theirs) == (2, 5, pytest.approx(58 / 128))
    assert mcnemar(ours, ours) == (0, 0, 1.0)


def test_seeds_and_games_are_drawn_each_by_themselves() -> None:
    """The variance of the crossed bootstrap, exactly, by all pairs of draws of two seeds and three games."""
    cells = np.array([[1.0, 0.0, -1.0], [1.0, 1.0, 0.0]])
    every = [
        np.mean(cells[np.ix_(seeds, games)])
        for seeds in product(range(2), repeat=2)
        for games in product(range(3), repeat=3)
    ]
    found = crossed_interval([cells], 40_000)
    assert found.value == pytest.approx(1 / 3)
    assert found[1:] == pytest.approx(tuple(np.percentile(every, [2.5, 97.5])), abs=1e-9)


def test_seeds_that_differ_widen_the_interval_beyond_that_of_games() -> None:
    """All games of two seeds gained, all of two lost: McNemar sees 40 against 40; over seeds anything may be."""
    cells = np.repeat([[1.0], [1.0], [-1.0], [-1.0]], 20, axis=1)
    assert crossed_interval([cells])[1:] == pytest.approx((-1.0, 1.0))


def test_power_is_that_of_the_paired_t_test() -> None:
    """A difference of half a deviation takes 34 pairs (Cohen's tables, G*Power); and a simulation of five seeds."""
    assert seeds_needed(0.5, 1.0) == 34
    assert seeds_needed(0.8, 1.0) == 15
    assert (seeds_needed(0.0, 1.0), seeds_needed(0.001, 1.0)) == (None, None)
    detectable = minimum_detectable_difference(2.0, 5)
    assert detectable is not None
    assert power(detectable, 2.0, 5) == pytest.approx(0.8, abs=1e-9)
    drawn = np.random.default_rng(0).normal(detectable, 2.0, (20_000, 5))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert minimum_detectable_difference(2.0, 1) is None
    assert minimum_detectable_difference(0.0, 5) is None
