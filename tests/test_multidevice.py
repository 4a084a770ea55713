"""Programs on meshes of simulated devices; see `tests/layouts.py` and `tests/collectives.py`."""

import pytest

from tests import collectives, layouts
from tests.children import Child


@pytest.mark.slow
@pytest.mark.parametrize("program", [layouts.main, collectives.main])
def test_meshes_give_what_one_device_gives_and_exchange_what_they_must(program):
    child = Child(program)
    output, _ = child.communicate(timeout=500)
    assert child.returncode == 0, output
    assert output.endswith("done\n")
