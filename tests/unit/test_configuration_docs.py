"""docs/configuration.md says what the code says."""

import re
from pathlib import Path

from tests.configuration_reference import PAGE, page
from upwell.config import load


def test_the_reference_is_the_settings_own() -> None:
    assert PAGE.read_text("utf-8") == page(), "renew it: python -m tests.configuration_reference"


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "upwell.yaml").write_text(example, "utf-8")
    environ = {"SHOP_DB_PASSWORD": "x", "AURORA_PASSWORD": "x", "MASKING_KEY": "0123456789abcdef"}
    assert load(tmp_path / "upwell.yaml", environ).name == "legacy-shop"
