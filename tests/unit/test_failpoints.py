"""The list of places where tests kill the process is true: each is in the code, and the code has no others."""

import re
from collections import Counter
from pathlib import Path

from upwell import failpoints

SOURCE = Path(failpoints.__file__).parent


def test_every_name_stands_in_the_code_once_and_no_other_does() -> None:
    used = Counter(
        name
        for file in SOURCE.rglob("*.py")
        for name in re.findall(r"""failpoint\(\s*["']([^"']+)""", file.read_text())
    )
    assert used == Counter(dict.fromkeys(failpoints.NAMES, 1))
