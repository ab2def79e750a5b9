"""The files of a streamed set that turn out to be unreadable while a run reads them."""

from collections.abc import Iterator

from core.data.safe_zip import show
from core.schema.errors import BadDataset
from core.schema.progress import WarningRecord

MOST_LEFT_OUT = 0.01
"""The share of a streamed set's files that may be unreadable; one file always may."""
MOST_LEFT_OUT_ON_REQUEST = 0.5
"""The share with --leave-out-unusable: as for uploads, most images must be usable."""

_NAMED = 20


class LeftOut:
    """The unreadable files so far, each with the reason."""

    def __init__(self, share: float = MOST_LEFT_OUT) -> None:
        """share: the share of the files that may be unreadable."""
        self._share = share
        self._files: dict[str, str] = {}
        self._told = 0
        self.total = 0
        """Files of the set, readable or not."""

    def __len__(self) -> int:
        return len(self._files)

    def add(self, name: str, reason: str) -> None:
        """Leave a file out; `check` says whether these are too many."""
        self._files.setdefault(name, reason)

    def check(self) -> None:
        """Raise BadDataset when more files are unreadable than may be."""
        most = max(int(self._share * self.total), 1)
        if len(self._files) > most:
            named = ", ".join(f"{show(name)} ({reason})" for name, reason in list(self._files.items())[:3])
            raise BadDataset(
                f"{len(self._files):,} of {self.total:,} images cannot be read, more than the {most:,} that are left "
                f"out without asking: {named}",
                hint="replace or remove these files, or leave out up to half of them with --leave-out-unusable",
                field="dataset",
            )

    def warnings(self) -> Iterator[WarningRecord]:
        """Yield a warning for each file that was left out since the last call; from the 21st on, rarely."""
        files = list(self._files.items())
        for number, (name, reason) in enumerate(files[self._told :], self._told + 1):
            if number <= _NAMED or number & (number - 1) == 0:
                yield WarningRecord(
                    code="data_left_out",
                    message=f"{show(name)} is left out: {reason} ({number:,} of {self.total:,} files so far); in a "
                    "training batch the next image of the set takes its place",
                    remedy="replace or remove this file",
                )
        self._told = len(files)
