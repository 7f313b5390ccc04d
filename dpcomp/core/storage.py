"""Files that outlive a crash: written whole or not at all, in folders that stay."""

import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, draft_name: str | None = None) -> Iterator[Path]:
    """Replace a file by a draft once the draft is on the disk: another process sees the old file, or the whole new one.

    The block writes the draft; where it raises, the draft is removed and the file stays as it was. So it is after each
    `OSError`; where only the folder can't be synced, a warning says so, as for `put_in_place`.

    Args:
        path: The file. Its folder is made if it is missing.
        draft_name: The name of the draft, in the same folder; None gives each call a name of its own. A fixed name lets
            the next call overwrite what a killed one has left, and is for files that one process at a time writes.

    Yields:
        The path at which the block writes the draft.

    Raises:
        OSError: The draft can't be written, or the file not be replaced.
    """
    make_folder(path.parent)
    # Two processes, on one machine or two, may write the same file at once: each into a draft of its own.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part" if draft_name is None else draft_name)
    try:
        yield draft
        sync(draft)  # without it a crash of the machine may leave the new name on an empty file
        put_in_place(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def put_in_place(draft: Path, path: Path) -> None:
    """Give a draft, which is on the disk, the name of the file or folder that it replaces, and sync that name.

    Where the name can't be synced, a warning says so, and no error: the new content is what every process reads from
    now on, and a caller that took it for unwritten would go on from another state than its own restart. Nor can it be
    taken back for sure, on a disk that has just failed. Only after a crash of the machine the old content may be back,
    so what is kept here must bear being set back, as from a backup; a ledger is not kept here.

    Args:
        draft: The draft.
        path: Its new name, in the same folder.

    Raises:
        OSError: It can't be renamed; what has the name stays as it was.
    """
    os.replace(draft, path)
    try:
        sync(path.parent)
    except OSError as error:
        warnings.warn(
            f"{path} is written, but its folder can't be synced ({error}): after a crash of the machine the one before "
            "it may be back. Is the disk damaged?",
            stacklevel=2,
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as `atomic_write` does. Raises OSError."""
    with atomic_write(path) as draft:
        draft.write_bytes(content)


def make_folder(place: Path) -> None:
    """Make a folder, and those above it, that outlive the machine's next crash. Raises OSError."""
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    place.mkdir(parents=True, exist_ok=True)
    for folder in made:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
