"""Files of results, which other processes never see half written."""

import json
from pathlib import Path
from typing import Any

from mmsparse.checkpoint.files import open_whole


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    with open_whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all."""
    write_text(path, json.dumps(content, indent=2) + '\n')
