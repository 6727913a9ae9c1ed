"""Each step of each use case fails on PostgreSQL; a file for each database, so that two processes can test them."""

from __future__ import annotations

import pytest

from tests.crash.each_step import CASES, each_step_fails
from tests.kit.steps import How
from tests.kit.town import Town


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("how", list(How), ids=lambda how: how.name.lower())
@pytest.mark.parametrize("name", CASES)
def test_each_step_fails(place: Town, name: str, how: How) -> None:
    """Not done, or done and denied; then all goes on, and every invariant holds."""
    each_step_fails(place, name, how)
