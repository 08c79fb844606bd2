"""Ranks of a stream of rows, as threads of one process."""

import threading


class ThreadCommunicator:
    """Ranks that are threads of one process: what each sends is laid on a board."""

    def __init__(self, rank, size, barrier, board):
        self.rank, self.size = rank, size
        self._barrier, self._board = barrier, board

    def gather(self, value):
        self._board[self.rank] = value
        self._barrier.wait()
        values = [self._board[rank] for rank in range(self.size)]
        self._barrier.wait()
        return values

    def exchange(self, parts):
        return [parts[self.rank] for parts in self.gather(parts)]


def on_ranks(size, work):
    """Run `work(communicator)` on every rank and return what they return."""
    barrier, board, results = threading.Barrier(size, timeout=60), {}, {}

    def run(rank):
        try:
            results[rank] = work(ThreadCommunicator(rank, size, barrier, board))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(size)]
