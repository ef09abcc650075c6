"""Eight virtual CPU devices, strict rank promotion, and compilation without LLVM's optimizations: a third less time."""

import os

os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1"])

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
