"""Files that another process sees whole or not at all."""

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, and give it its own once it is on the disk. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes, on one machine or two, may write the same file at once: each into a draft of its own.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # without it a crash of the machine may leave the new name on an empty file
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
