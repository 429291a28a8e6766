"""The bins that boosting is fitted to, against their definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.adapters import fitting

_VALUES = st.lists(
    st.tuples(st.one_of(st.just(float("nan")), st.integers(-40, 40).map(lambda n: n / 8)), st.booleans()),
    min_size=1,
    max_size=80,
)


@given(_VALUES, st.integers(2, 9))
def test_bins_are_the_quantiles_of_values_in_which_both_classes_weigh_the_same(
    rows: list[tuple[float, bool]], bins: int
) -> None:
    """Fires are rare: with bins by the number of rows, smoke above the quiet air's would be a single one."""
    value = np.array([value for value, _ in rows], dtype=np.float32)
    fire = np.array([fire for _, fire in rows])
    (edges,) = fitting._edges(value[:, np.newaxis], fire, bins)
    known = {float(each) for each in value if not np.isnan(each)}
    assert len(edges) < bins
    assert set(edges.tolist()) <= known
    if len(known) <= bins:
        assert edges.tolist() == sorted(known)[:-1]
        return
    weighed = [
        (float(each), 1.0 / max(1, (fire == is_fire).sum()))
        for each, is_fire in zip(value, fire, strict=True)
        if not np.isnan(each)
    ]
    total = sum(weight for _, weight in weighed)
    for number in range(1, bins):
        share = number / bins * total
        # The least value up to which so much weight lies, but for what rounding adds to a sum.
        below = [sum(weight for other, weight in weighed if other <= each) for each in sorted(known)]
        wanted = {
            next((each for each, lies in zip(sorted(known), below, strict=True) if lies >= limit), max(known))
            for limit in (share - 1e-9, share + 1e-9)
        }
        assert wanted & set(edges.tolist())


@given(_VALUES, st.integers(2, 9))
def test_a_value_is_in_the_bin_whose_upper_edge_it_does_not_exceed(rows: list[tuple[float, bool]], bins: int) -> None:
    """The exported limits are edges: a place that counted otherwise would be another model than the trained one."""
    value = np.array([[value] for value, _ in rows], dtype=np.float32)
    edges = fitting._edges(value, np.array([fire for _, fire in rows]), bins)
    places = fitting._places(value, edges)
    assert (np.isnan(places) == np.isnan(value)).all()
    for each, place in zip(value[:, 0], places[:, 0], strict=True):
        for number, edge in enumerate(edges[0]):
            assert np.isnan(each) or (each <= edge) == (place <= number)
