"""Where the coverage report looks for entries that have another name here."""

from __future__ import annotations

import pytest

from tests.oracle.coverage import ELSEWHERE, present


@pytest.mark.parametrize(("group", "name"), ELSEWHERE, ids=lambda part: str(part))
def test_other_names_exist(group: str, name: str) -> None:
    """A renamed class or function would make the report wrong."""
    assert present(group, name)
