"""The weights of auxiliary losses over the updates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envrl.errors import UserError
from envrl.objective.schedule import SCHEDULES, weight_at


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 0.2 · ½ (1 + cos(π t / 4)) at t = 0 … 5: cos = 1, 0.7071, 0, −0.7071, then 0
        ("cosine", [0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5), 0, 0]),
        ("linear", [0.2, 0.15, 0.1, 0.05, 0, 0]),
        ("constant", [0.2] * 6),
    ],
)
def test_by_hand(schedule: str, expected: list[float]):
    assert [weight_at(t, 0.2, schedule, 4) for t in range(6)] == pytest.approx(expected, abs=1e-15)


@given(update=st.integers(0, 500), length=st.integers(0, 300), schedule=st.sampled_from(SCHEDULES))
def test_moves_one_way_and_stays_within_its_range(update: int, length: int, schedule: str):
    now, later = weight_at(update, 0.2, schedule, length), weight_at(update + 1, 0.2, schedule, length)
    assert 0 <= (now if schedule == "rise" else later) <= (later if schedule == "rise" else now) <= 0.2


def test_zero_exactly_from_its_end_on():
    assert weight_at(150, 0.2, "cosine", 150) == 0.0
    assert weight_at(0, 0.2, "cosine", 0) == 0.0
    assert weight_at(0, 0.2, "constant", 0) == 0.2


def test_an_unknown_schedule_is_a_sentence():
    with pytest.raises(UserError, match="cannot be 'cosin'; did you mean 'cosine'"):
        weight_at(0, 0.2, "cosin", 10)
