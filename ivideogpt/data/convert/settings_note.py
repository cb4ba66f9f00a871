"""A note in a folder of converted episodes of how they were made, so that one folder holds one kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.files import read_json, write_json

NOTE = "conversion.json"


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder and note the settings there.

    Raises:
        UserError: the folder cannot be written to, or its episodes were made with other settings: going on would mix
            sizes, rates or cameras, which nothing notices later.
    """
    now = json.loads(json.dumps(settings, default=str))  # as they will be read back
    note = folder / NOTE
    advice = "delete it to go on with the settings given now, or use another folder"
    before = read_json(note, advice) if note.exists() else now
    differing = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    if differing:
        raise UserError(f"{folder} holds episodes made otherwise ({'; '.join(differing)}): use another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, now)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
