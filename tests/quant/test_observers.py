"""Observers against brute force on the raw values, and histograms that do not grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgemm.errors import UsageError
from edgemm.quant import OBSERVERS
from edgemm.quant.arithmetic import dequantize, quantize, scale_of
from edgemm.quant.histogram import MagnitudeHistogram
from edgemm.quant.observers import PercentileObserver, new_observer


def observed(name, *batches):
    observer = new_observer(name)
    for batch in batches:
        observer.observe(np.asarray(batch, np.float32))
    return observer.amax()


def heavy_tailed(seed=0, count=200_000):
    return np.random.default_rng(seed).standard_t(3, count).astype(np.float32)


batches = st.lists(
    hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=6
)


@given(batches)
def test_min_max_is_the_largest_magnitude(data):
    assert observed("min-max", *data) == max((float(np.abs(b).max(initial=0)) for b in data), default=0.0)


@given(batches)
def test_no_observer_goes_beyond_what_was_seen_nor_below_zero(data):
    largest = max(float(np.abs(batch).max(initial=0)) for batch in data)
    for name in OBSERVERS:
        assert 0 <= observed(name, *data) <= largest * (1 + 1e-6)


@given(batches)
def test_every_value_is_counted_in_the_bin_it_belongs_to(data):
    histogram = MagnitudeHistogram(bins=64)
    for batch in data:
        histogram.add(batch)
    magnitudes = np.abs(np.concatenate(data))
    assert histogram.counts.sum() == int(np.sum(magnitudes > 0))
    assert histogram.largest == float(magnitudes.max(initial=0))
    assert histogram.limit >= histogram.largest or histogram.limit == 0
    if histogram.largest:
        # By one pass over everything with the final edges; a value on an edge may be one bin off.
        expected, _ = np.histogram(magnitudes[magnitudes > 0], bins=64, range=(0, histogram.limit))
        below, counted = np.cumsum(expected), np.cumsum(histogram.counts)
        assert np.all(counted[1:] >= below[:-1])
        assert np.all(counted[:-1] <= below[1:])


def test_growth_by_powers_of_two_gives_the_counts_of_one_pass():
    rng = np.random.default_rng(3)
    # No value on an edge, but for the first, which makes the limit a power of two.
    parts = [((rng.integers(0, top * 64, 1000) + 0.5) / 64).astype(np.float32) for top in (1, 3, 2, 40, 7)]
    parts.insert(0, np.ones(1, np.float32))
    grown = MagnitudeHistogram(bins=256)
    for part in parts:
        grown.add(part)
    assert grown.limit == 64.0
    expected, _ = np.histogram(np.concatenate(parts[1:]), bins=256, range=(0, 64))
    expected[3] += 1
    np.testing.assert_array_equal(grown.counts, expected)


def test_growth_far_beyond_all_bins_keeps_every_count():
    histogram = MagnitudeHistogram(bins=16)
    histogram.add(np.full(5, 1e-38, np.float32))
    histogram.add(np.array([1.0, 1e30], np.float32))
    assert histogram.counts.sum() == 7
    assert histogram.counts[0] == 6


def test_memory_does_not_grow_with_the_number_of_batches():
    histogram = MagnitudeHistogram()
    before = histogram.counts.nbytes
    rng = np.random.default_rng(0)
    for exponent in range(60):
        histogram.add(rng.normal(size=1000).astype(np.float32) * np.float32(1.5**exponent))
    assert histogram.counts.nbytes == before
    assert {key for key, value in vars(histogram).items() if isinstance(value, np.ndarray)} == {"counts"}
    assert histogram.counts.sum() == 60_000


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
def test_percentile_is_numpys_within_a_bin(percentile):
    data = heavy_tailed()
    observer = PercentileObserver(percentile)
    for part in np.split(data, 10):
        observer.observe(part)
    expected = np.percentile(np.abs(data), percentile)
    assert observer.amax() == pytest.approx(expected, abs=float(np.abs(data).max()) / 1024)


def test_percentile_leaves_zeros_out():
    assert observed("percentile", np.zeros(10**6), [5.0]) == pytest.approx(5.0, rel=1e-3)


def test_percentile_refuses_what_is_none():
    with pytest.raises(UsageError, match="above 0 and at most 100, found 0"):
        PercentileObserver(0)


@pytest.mark.parametrize("seed", range(4))
def test_mse_is_as_good_as_brute_force_on_the_values(seed):
    data = heavy_tailed(seed, 50_000)

    def error(amax):
        scale = scale_of(amax)
        return float(np.mean((dequantize(np.clip(quantize(data, scale), -127, 127), scale) - data) ** 2))

    best = min(error(amax) for amax in np.linspace(0.02, 1, 400) * np.abs(data).max())
    assert error(observed("mse", *np.split(data, 5))) <= best * 1.03
    assert error(observed("mse", data)) < error(observed("min-max", data))


def test_mse_keeps_everything_when_nothing_is_gained_by_clipping():
    assert observed("mse", np.linspace(-1, 1, 10_001)) == pytest.approx(1.0, rel=0.02)


def test_entropy_is_the_minimum_of_a_plain_implementation():
    data = heavy_tailed(1, 20_000)
    histogram = MagnitudeHistogram()
    histogram.add(data)
    counts = histogram.counts.astype(float).tolist()

    def divergence(bins):
        """The definition, with loops."""
        reference = counts[:bins]
        image = [0.0] * bins
        for level in range(128):
            inside = [i for i in range(bins) if i * 128 // bins == level and counts[i] > 0]
            for i in inside:
                image[i] = sum(counts[j] for j in inside) / len(inside)
        reference[-1] += sum(counts[bins:])
        image[-1] = image[-1] or 1.0
        total_p, total_q = sum(reference), sum(image)
        return sum(
            p / total_p * np.log((p / total_p) / (q / total_q)) for p, q in zip(reference, image, strict=True) if p > 0
        )

    chosen = round(observed("entropy", data) / histogram.width)
    neighbours = [chosen, 2048, 3072, 3500, 4096, chosen - 8, chosen + 8]
    allowed = [bins for bins in neighbours if 128 <= bins <= 4096 and sum(counts[bins:]) <= 0.001 * sum(counts)]
    values = [divergence(bins) for bins in allowed]
    assert values[0] == min(values)
    assert len(values) > 2


def test_entropy_clips_an_outlier_and_ignores_zeros():
    data = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    with_outlier = np.append(data, 60.0).astype(np.float32)
    assert observed("entropy", with_outlier) < 15
    with_zeros = np.concatenate([with_outlier, np.zeros(10**6, np.float32)])
    assert observed("entropy", with_zeros) == observed("entropy", with_outlier)


@pytest.mark.parametrize("name", OBSERVERS)
def test_only_zeros_is_a_range_of_zero(name):
    assert observed(name, np.zeros(10), np.zeros(0)) == 0.0


@pytest.mark.parametrize("name", OBSERVERS)
def test_one_value_is_its_own_range(name):
    assert observed(name, [3.0]) == pytest.approx(3.0, rel=1e-3)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match=r'no calibrator "kl"\. Choose one of: min-max, percentile, entropy, mse'):
        new_observer("kl")
