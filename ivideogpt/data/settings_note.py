"""A note in a folder of converted episodes of how they were made, so that one folder holds one kind."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError

NOTE = "conversion.json"


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder and note the settings there.

    Raises:
        UserError: the folder cannot be written to, or its episodes were made with other settings: going on would mix
            sizes, rates or cameras, which nothing notices later.
    """
    now = json.loads(json.dumps(settings, default=str))  # as they will be read back
    note = folder / NOTE
    try:
        before = json.loads(note.read_text()) if note.exists() else now
        differing = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
        if differing:
            raise UserError(f"{folder} holds episodes made otherwise ({'; '.join(differing)}): use another folder")
        folder.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f".{NOTE}.partial")
        partial.write_text(json.dumps(now, indent=2) + "\n")
        os.replace(partial, note)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{note}: not readable as JSON ({error}); delete it, or use another folder") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
