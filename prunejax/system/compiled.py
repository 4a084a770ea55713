"""Compiled programs, kept between processes: a resumed study, a shard, a second run start sooner.

They lie in the user's cache folder, apart for each version of JAX and each kind of processor,
never in a run directory. What is read is the program that would have been compiled.
"""

import hashlib
import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path

from prunejax.system.files import cache

VARIABLE = "PRUNEJAX_COMPILATION_CACHE"
OFF = ("off", "0", "false", "no")
LIMIT = 2 << 30  # bytes; the oldest programs go first


def folder(environment: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """Where programs are kept: `~/.cache/prunejax/xla/...` unless the environment says otherwise.

    Args:
      environment: `PRUNEJAX_COMPILATION_CACHE` may name a folder, or be "off". JAX's own variables
        (`JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`) go first: with one of them
        set this has no say. `XDG_CACHE_HOME` and `HOME` as usual.
      root: of the file system, for `/proc/cpuinfo`.

    Returns: None where nothing is to be kept, or there is no home.

    Raises ConfigError: the variable names a user who is not there.
    """
    if environment.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    if environment.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() in OFF:
        return None
    if environment.get(VARIABLE, "").lower() in OFF:
        return None
    base = cache(VARIABLE, "xla", environment)
    return base and base / f"{_version()}-{_processor(root)}"


def prepared(environment: Mapping[str, str]) -> Path | None:
    """The folder, made and trimmed to its limit.

    Returns:
      None if nothing is to be kept, or the folder cannot be made or written, or is another user's
      or open to others (programs that others may write are not run).
    """
    path = folder(environment)
    if path is None:
        return None
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = path.stat()
        if owner.st_uid != os.geteuid() or owner.st_mode & 0o022 or not os.access(path, os.W_OK):
            return None
        trim(path)
    except OSError:
        return None
    return path


def use(environment: Mapping[str, str]) -> Path | None:
    """Keeps compiled programs in `prepared(environment)`, to be called before JAX compiles.

    Returns: The folder; None if nothing is kept.
    """
    path = prepared(environment)
    if path is None:
        return None
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None):  # of whoever called us
        return None
    # A file that another process is just writing is told as damaged, and compiled anew.
    for text in ("reading", "writing"):
        warnings.filterwarnings("ignore", f"Error {text} persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(path))
    # those that compile quickly as well: a study has many
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def trim(path: Path, limit: int = LIMIT) -> None:
    """Removes the programs not used for longest until those left take `limit` bytes or less.
    Raises OSError: the folder cannot be read.
    """
    known = []
    for entry in os.scandir(path):
        if entry.is_file(follow_symlinks=False):
            facts = entry.stat()
            # without times of access (noatime) that of writing
            known.append((max(facts.st_atime, facts.st_mtime), facts.st_size, entry.path))
    total = sum(size for _, size, _ in known)
    for _, size, name in sorted(known):
        if total <= limit:
            break
        Path(name).unlink(missing_ok=True)  # another process may have been quicker
        total -= size


def _version() -> str:
    from importlib import metadata

    return "-".join(f"{name}{metadata.version(name)}" for name in ("jax", "jaxlib"))


def _processor(root: Path) -> str:
    """What programs for a CPU depend on: homes are shared by machines of several kinds."""
    facts = [platform.machine(), platform.processor()]
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = ("flags", "Features", "model name")
    facts += [line for line in text.split("\n\n")[0].splitlines() if line.startswith(names)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
