"""What all harnesses are asked."""

from __future__ import annotations

import harnesses
import pytest


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    return harnesses.questions(tmp_path_factory.mktemp("pictures"))
