"""Files that are written whole or not at all."""

import pytest

from dpcomp.core import storage
from dpcomp.core.storage import atomic_write, make_folder, write_whole


def test_a_file_is_replaced_whole_and_no_draft_stays(tmp_path):
    path = tmp_path / "deeper" / "still" / "some.bin"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "some.bin"
    write_whole(path, b"first")

    def fail():
        with atomic_write(path) as draft:
            draft.write_bytes(b"half")
            assert draft.parent == path.parent
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_with_a_fixed_name_takes_the_place_of_what_a_killed_process_left(tmp_path):
    path = tmp_path / "some.bin"
    (tmp_path / "unfinished").write_bytes(b"what a killed process left")
    with atomic_write(path, draft_name="unfinished") as draft:
        assert draft == tmp_path / "unfinished"
        draft.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "some.bin"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_is_made_with_those_above_it(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()


def test_a_file_whose_folder_cannot_be_synced_is_written_with_a_warning(tmp_path, monkeypatch):
    def damaged(path):
        if path.is_dir():
            raise OSError(5, "Input/output error")

    path = tmp_path / "some.bin"
    write_whole(path, b"first")
    monkeypatch.setattr(storage, "sync", damaged)
    with pytest.warns(UserWarning, match=r"some\.bin is written, but its folder can't be synced"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]
