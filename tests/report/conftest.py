from __future__ import annotations

from typing import Any

import pytest
from synthetic_study import make_evidence


@pytest.fixture(scope="session")
def evidence() -> dict[str, Any]:
    return make_evidence()
