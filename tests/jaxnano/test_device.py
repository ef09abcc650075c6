"""Where compiled programs are kept."""

import os
import subprocess
import sys
from pathlib import Path

from jaxnano.device import COMPILE_CACHE_BYTES, LARGE_CACHE_BYTES, _prune

PROGRAM = """
import shutil, sys, warnings
from pathlib import Path
import jax, jax.numpy as jnp
from jaxnano.device import use_compile_cache
warnings.simplefilter("error")
kept = []
for n in (2, 3):
    use_compile_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    folder = Path(jax.config.values["jax_compilation_cache_dir"])
    jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) * n)(jnp.ones(n)))
    kept.append(len(list(folder.iterdir())))
    shutil.rmtree(folder)
print(folder)
assert all(kept), kept
"""


def test_the_oldest_programs_go_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "older", "oldest")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    _prune(tmp_path, 20)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "older"}
    assert COMPILE_CACHE_BYTES["cpu"] < LARGE_CACHE_BYTES == 20 * 2**30


def test_a_cache_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    ours = ("JAXNANO_CACHE", "JAX_COMPILATION_CACHE_DIR")
    given = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True,
                          env=given | {"XDG_CACHE_HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(tmp_path / "jaxnano" / "compiled-"))
