"""The configuration of what AWS starts."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from upwell.app import logs
from upwell.app.secret_store import from_secrets_manager
from upwell.config import Pipeline, environment_secrets, load

# Beside the code, where Lambda unpacks it.
FILE: Final = "/var/task/upwell.yaml"


def configured(needs: Collection[str]) -> Pipeline:
    """The pipeline of UPWELL_CONFIG, its secrets hidden from here on. Raises ConfigError."""
    pipeline = load(Path(os.environ.get("UPWELL_CONFIG", FILE)), os.environ, needs=needs, secret=from_secrets_manager)
    logs.hide([*pipeline.secrets, *environment_secrets(os.environ)])
    return pipeline
