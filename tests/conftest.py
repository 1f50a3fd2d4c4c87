"""What holds for every test."""

# MMEngine imports yapf, which on a new machine writes its grammar cache without a lock: a second
# worker that imports it at the same moment reads half a file and fails with EOFError. Imported
# here, it is imported once before pytest starts its workers.
import pytest
import torch
import yapf  # noqa: F401


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> None:
    """Let what a test draws depend neither on the tests before it nor on the worker."""
    torch.manual_seed(0)
