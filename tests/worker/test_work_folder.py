"""Attempts at one job on one machine keep out of each other's folders."""

from worker.work_folder import work_folder


def test_an_attempt_removes_what_earlier_ones_have_left_and_leaves_a_later_one_alone(tmp_path):
    with work_folder(tmp_path, "job_1", 1) as first:
        (first / "file").touch()
        with work_folder(tmp_path, "job_1", 2) as second:
            assert not first.exists()
            # The first one comes late to its end, or even to its beginning.
            with work_folder(tmp_path, "job_1", 1):
                (second / "file").touch()
            assert [path.name for path in second.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == []
