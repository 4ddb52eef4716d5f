"""Goals beside the figures that were reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    what: str
    goal: str
    reached: str
    met: bool | None  # None: not measured here


def at_least(what: str, goal: float, reached: float | None, unit: str) -> Goal:
    met = None if reached is None else reached >= goal
    return Goal(what, f">= {_shown(goal, unit)}", _shown(reached, unit), met)


def at_most(what: str, goal: float, reached: float | None, unit: str) -> Goal:
    met = None if reached is None else reached <= goal
    return Goal(what, f"<= {_shown(goal, unit)}", _shown(reached, unit), met)


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{value * 100:.1f} %" if unit == "%" else f"{value:.2f}x"


def verdict(passed: bool | None, none: str = "-") -> str:
    return none if passed is None else "yes" if passed else "NO"
