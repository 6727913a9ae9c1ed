"""The holder that tests use keeps the contract of every holder."""

from __future__ import annotations

import pytest

from tests.kit.holder_contract import HolderContract
from tests.kit.memory_holder import MemoryHolder


class TestMemoryHolder(HolderContract):
    """The contract, in memory."""

    @pytest.fixture
    def holder(self) -> MemoryHolder:
        """An empty one."""
        return MemoryHolder()

    @pytest.fixture
    def again(self, holder: MemoryHolder) -> MemoryHolder:
        """There is only the one."""
        return holder
