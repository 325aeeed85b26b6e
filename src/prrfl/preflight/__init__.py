"""Preflight checks: installation, hardware, data and speed, before anything is trained.

Each check returns findings. None of them changes anything. A fault that the user can fix is a finding, not an
error.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from prrfl.config import TrainConfig, checked, load_config
from prrfl.data.own import is_own_data
from prrfl.data.sources import npz_files
from prrfl.errors import PRRFLError
from prrfl.machine import available_memory
from prrfl.preflight.data import DataSet, check_images, check_loading
from prrfl.preflight.findings import Finding, verdict
from prrfl.preflight.hardware import check_cores, check_disk, check_gpu
from prrfl.preflight.installation import (
    check_extras,
    check_metadata,
    check_packages,
    check_python,
    check_shadowing,
    check_system,
)
from prrfl.preflight.speed import check_speed
from prrfl.runs.setup import make_recipe, resolved

__all__ = ["Finding", "preflight", "verdict"]


def preflight(
    config: Path | None = None,
    data: Path | None = None,
    seen: Callable[[int, int], None] | None = None,
) -> Iterator[Finding]:
    """Run all checks, and yield what they find.

    Args:
        config: TOML file with settings; by default, the paper's settings.
        data: data set in any format that ``prrfl train`` reads.
        seen: called with the number of images read so far, and with their total.
    """
    if missing := check_metadata():
        yield missing
        return
    yield check_python()
    yield (system := check_system())
    if system.level == "problem":
        return
    yield from check_shadowing()
    yield from check_packages()
    yield from check_extras()
    yield check_cores()
    yield from check_gpu()
    memory = available_memory()
    settings, faults = _read_settings(config, data)
    yield from faults
    data = settings.data  # from the argument, or from the file
    arrays = npz_files(data) if data else []
    source = DataSet((), len(arrays) or settings.sites)
    if data and not arrays and not is_own_data(data):
        source, faults = check_images(settings, data, seen)
        yield from faults
    try:
        chosen = resolved(settings, max(1, source.sites))
    except PRRFLError as cause:
        yield Finding("problem", "settings", str(cause))
        return
    yield Finding(
        "ok",
        "train picks",
        f"device {chosen.device}, {chosen.precision}, processes: {chosen.workers}, "
        f"threads of each: {chosen.threads}",
    )
    try:
        recipe = make_recipe(chosen)
    except (ImportError, PRRFLError) as cause:
        yield Finding("problem", "network", f"{chosen.network} cannot be built: {cause}")
        return
    yield from check_disk(chosen, source.sites, recipe)
    yield from check_speed(chosen, source, memory, recipe)
    if data and source.usable:
        yield from check_loading(settings, source, memory)


def _read_settings(config: Path | None, data: Path | None) -> tuple[TrainConfig, list[Finding]]:
    """Return the settings to check, and what is wrong with them; the defaults if a file's are invalid."""
    given = {} if data is None else {"data": data}
    defaults = checked(given, "defaults")
    if config is None:
        return defaults, []
    try:
        return load_config(config, given), []
    except PRRFLError as cause:
        return defaults, [Finding("problem", "settings", str(cause))]
