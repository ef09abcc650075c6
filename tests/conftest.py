"""Eight virtual CPU devices, strict rank promotion, and programs that compile at the least expense, not to run fast."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

# Without LLVM's optimizations compiling takes a third less; by XLA's older emitter, a quarter of what then remains.
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    *(["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else [])])  # newer: unknown

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads where in the source an operation comes from
seals = tempfile.mkdtemp(prefix="jaxnano-seals-")
os.environ["JAXNANO_REGISTRY"] = os.path.join(seals, "seals.sqlite")  # the seals of tests are not the user's
atexit.register(shutil.rmtree, seals, ignore_errors=True)
gc.set_threshold(50_000)  # tracing makes so much that a tenth of its time would go into looking for cycles
