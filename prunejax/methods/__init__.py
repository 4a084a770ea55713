"""Ways of pruning: scores of whole networks, drops and growths, and published methods by name.

`evidence` and `before`: before training; `growth`: while training, as pure functions; `METHODS`:
settings by name, which `timetable` turns into counts by step and `transformation` into an optax
transformation. `prunejax.sparsify.sparsify(tx, name, ...)` is the door.
"""

from prunejax.methods.table import METHODS as METHODS
from prunejax.methods.table import Method as Method
from prunejax.methods.table import resolve as resolve
