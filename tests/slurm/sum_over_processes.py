"""One number from each process, added up over all of them: that they really met."""

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from prunejax.cluster import distributed

distributed.initialize(timeout_seconds=60)
total = multihost_utils.process_allgather(jnp.float32(jax.process_index() + 1)).sum()
print(f"process {jax.process_index()} of {jax.process_count()}: sum {float(total)}", flush=True)
distributed.sync("end")
