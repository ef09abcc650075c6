"""What processes that tests start have besides their environment: one device, one thread, and cheap programs too."""

import os

ALONE = {"XLA_FLAGS": " ".join([
    os.environ["XLA_FLAGS"], "--xla_force_host_platform_device_count=1", "--xla_cpu_multi_thread_eigen=false",
    "intra_op_parallelism_threads=1"])}
