"""All settings of a run: what they are, and how they are read and checked."""

from prrfl.config.faults import choices
from prrfl.config.reading import (
    checked,
    given_settings,
    load_config,
    merged,
    parse_settings,
    parse_toml,
    renamed,
)
from prrfl.config.scope import Scope
from prrfl.config.settings import (
    LARGEST_FILE,
    PARTS,
    READING,
    SCOPES,
    TRACKERS,
    TrainConfig,
    as_written_now,
    toml_value,
)

__all__ = [
    "LARGEST_FILE",
    "PARTS",
    "READING",
    "SCOPES",
    "TRACKERS",
    "Scope",
    "TrainConfig",
    "as_written_now",
    "checked",
    "choices",
    "given_settings",
    "load_config",
    "merged",
    "parse_settings",
    "parse_toml",
    "renamed",
    "toml_value",
]
