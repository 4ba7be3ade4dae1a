"""The statistics of docs/learning.md: Student's t by its table, Holm by hand, and sentences that need data."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "learning_claims.py"
SPEC = importlib.util.spec_from_file_location("learning_claims", FILE)
assert SPEC is not None
assert SPEC.loader is not None
claims = importlib.util.module_from_spec(SPEC)
sys.modules["learning_claims"] = claims
SPEC.loader.exec_module(claims)


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365), (8, 2.306), (9, 2.262)],
)
def test_the_table_of_student(degrees: int, t: float) -> None:
    assert claims.quantile(degrees) == pytest.approx(t, abs=6e-4)
    assert claims.two_sided(t, degrees) == pytest.approx(0.05, abs=1e-4)
    assert claims.two_sided(0.0, degrees) == pytest.approx(1)


def test_paired_differences_by_hand() -> None:
    mean, half, p = claims.paired([1.0, 2.0, 3.0])  # error 1/sqrt(3), t 2 sqrt(3) on 2 degrees
    assert (mean, half) == (2, pytest.approx(4.3027 / 3**0.5, abs=1e-3))
    assert p == pytest.approx(1 - (12 / 14) ** 0.5)
    assert claims.paired([0.5, 0.5]) == (0.5, 0, 0)
    assert claims.paired([0.0, 0.0])[2] == 1


def test_holm_by_hand() -> None:
    assert claims.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert claims.holm([0.9, 0.8]) == [1, 1]
    assert claims.holm([]) == []


def lines(arm: str, values: list[float]) -> list[dict[str, Any]]:
    return [{"arm": arm, "seed": seed, "success": value, "curves": {}} for seed, value in enumerate(values)]


def test_a_sentence_needs_a_difference_that_survives_the_correction() -> None:
    claim = claims.Claim("a against b", "a", "b", claims.final, "A wins.", "A loses.")
    played = [*lines("a", [0.5, 0.61, 0.7]), *lines("b", [0.4, 0.5, 0.6, 0.9])]
    (alone,) = claims.compared(played, [claim])
    assert (alone.seeds, alone.verdict) == (3, "a is better")
    assert alone.sentence.startswith("A wins. (+0.103")
    among = claims.compared(played, [claim] * 60)
    assert among[0].p == alone.p < claims.LEVEL < among[0].holm
    assert (among[0].verdict, among[0].sentence) == ("no difference that 3 seeds can show", "")
    assert "A wins" not in "\n".join(claims.findings(played, among))
    assert claims.compared(lines("a", [0.5, 0.6]), [claim]) == []


def test_views_of_feedback_are_those_of_groups_without_a_success() -> None:
    curves = {"groups_all_failed": [0.5, 0.0], "episodes": [8, 8], "rows_without_teacher": [0, 2]}
    assert claims.feedback_share({"curves": curves}) == pytest.approx(4 / 14)
    assert claims.feedback_share({"curves": {}}) is None


def test_half_of_the_way_by_hand() -> None:
    """Means of two: 0, 0.1, 0.4, 0.7, 0.8; the third is the first of 0.4 or more, after four steps of ten episodes."""
    curves = {"success": [0.0, 0.0, 0.2, 0.6, 0.8, 0.8], "episodes": [10] * 6}
    assert claims.half_way({"curves": curves}, window=2) == 40
