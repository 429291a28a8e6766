"""The proof itself must be able to fail: a lost, doubled, changed or mislabelled reading has to show."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.domain.readings import ReadingRejected, RejectReason, parse_reading
from smoke_platform.orchestration import names
from smoke_platform.verification.dagster_http import Run
from smoke_platform.verification.evidence import compare_sets, differing_columns, wrong_reasons
from smoke_platform.verification.poison import poisoned_messages
from smoke_platform.verification.run import _taken_along

SCHEMA = {"topic_id": pl.String, "partition": pl.Int32, "offset": pl.Int64}


def identities(pairs: list[tuple[int, int]]) -> pl.DataFrame:
    return pl.DataFrame([("t", *pair) for pair in pairs], schema=SCHEMA, orient="row")


PAIRS = st.tuples(st.integers(0, 3), st.integers(0, 20))


@given(st.sets(PAIRS), st.lists(PAIRS))
def test_sets_are_compared_as_sets_and_not_by_their_size(acknowledged, landed):
    """A platform that lost one reading and doubled another would be declared sound."""
    result = compare_sets(identities(sorted(acknowledged)), identities(landed))
    assert result.missing == len(acknowledged - set(landed))
    assert result.unexpected == len(set(landed) - acknowledged)
    assert result.doubled == len({pair for pair in landed if landed.count(pair) > 1})
    assert result.equal == (sorted(acknowledged) == sorted(landed))


def test_a_changed_value_is_counted_in_its_column():
    """A value altered between Kafka and the lake would go unnoticed."""
    together = pl.DataFrame(
        {"a": [1.0, None, 3.0], "a_found": [1.0, 0.0, 3.0], "b": [1, 2, None], "b_found": [1, 2, None]}
    )
    assert differing_columns(together, ["a", "b"]) == {"a": 1}
    assert differing_columns(together, ["b"]) == {}


def test_a_wrong_reason_is_named():
    """A dead letter with a misleading reason would send an operator to the wrong device."""
    expected = identities([(0, 1), (0, 2)]).with_columns(reason=pl.Series(["not_json", "timestamp"]))
    letters = identities([(0, 1), (0, 2), (0, 2)]).with_columns(reason=pl.Series(["not_json", "not_json", "not_json"]))
    assert wrong_reasons(expected, letters).rows() == [("t", 0, 2, "timestamp", "not_json")]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_poisoned_message_is_rejected_for_the_reason_it_was_made_for(seed):
    """The proof and the parser would hold different opinions of what is wrong with a message."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    seen = set()
    for value, reason in poisoned_messages(400, seed):
        with pytest.raises(ReadingRejected) as caught:
            parse_reading(value, append_time=now)
        assert caught.value.reason == reason, value
        seen.add(reason)
    assert seen == set(RejectReason)


def test_a_streaming_run_that_a_kill_took_along_is_named_only_where_a_later_one_is_green() -> None:
    """A landing that never came back after a kill would be excused, or one that the kill broke would fail the proof."""

    def run(number: int, status: str, job: str = names.JOB_LANDING) -> Run:
        return Run(f"run-{number}", job, status, {})

    broken, green, training = run(1, "FAILURE"), run(2, "SUCCESS"), run(3, "FAILURE", names.JOB_TRAINING)
    assert _taken_along([training, green, broken]) == {"run-1"}
    assert _taken_along([broken]) == set()
    assert _taken_along([run(4, "FAILURE"), green, broken]) == {"run-1"}
    assert _taken_along([]) == set()
