"""Attempts at one job on one machine do not touch each other's folders."""

from worker.files.work_folder import work_folder


def test_an_attempt_removes_the_folders_of_earlier_attempts_and_not_of_later_ones(tmp_path):
    with work_folder(tmp_path, "job_1", 1) as first:
        (first / "file").touch()
        with work_folder(tmp_path, "job_1", 2) as second:
            assert not first.exists()
            # The first one comes late to its end, or even to its beginning.
            with work_folder(tmp_path, "job_1", 1):
                (second / "file").touch()
            assert [path.name for path in second.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == []
