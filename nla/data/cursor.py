"""The place of a training run in its rows, as one integer."""


class Cursor:
    """Number of rows of the training split that all ranks together have consumed, over all epochs.

    Batches that the loader has fetched ahead, or whose step did not finish, are not consumed: the trainer's count of
    batches decides. On resume the trainer restores its count after this state, so counts are ignored until the next
    loader is made.
    """

    def __init__(self) -> None:
        self._start = 0  # rows consumed when the current loader was made
        self._counted: int | None = None  # the trainer's batches at that moment; None: no loader yet

    def place(self, counted: int, rows_per_step: int) -> int:
        """Rows consumed once the trainer has counted that many batches."""
        return self._start if self._counted is None else self._start + (counted - self._counted) * rows_per_step

    def loader_made(self, counted: int, rows_per_step: int) -> int:
        """Where the new loader starts."""
        self._start, self._counted = self.place(counted, rows_per_step), counted
        return self._start

    def restore(self, place: int) -> None:
        self._start, self._counted = place, None
