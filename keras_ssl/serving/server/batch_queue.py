"""The requests that may share a batch, in the order in which they will run."""

import collections


class BatchQueue:
    """The requests with the same key that wait for a batch, round-robin per client."""

    def __init__(self):
        # client -> deque of tasks; the client whose turn is next comes first.
        self._clients = collections.OrderedDict()
        self.size = 0  # rows

    def has_room(self, client, size, limit):
        """Returns whether `size` more rows fit into `limit`, or into this client's equal part of `limit`."""
        if self.size + size <= limit:
            return True
        mine = sum(task.size for task in self._clients.get(client, ()))
        return mine + size <= limit // len(self._clients.keys() | {client})

    def add(self, task):
        self._clients.setdefault(task.client, collections.deque()).append(task)
        self.size += task.size

    def next(self):
        """Returns the client whose turn it is."""
        return next(iter(self._clients))

    def start(self):
        """Returns when the oldest request of the queue arrived, in seconds."""
        return min(tasks[0].start for tasks in self._clients.values())

    def take(self, limit):
        """Removes and returns the tasks of a batch, which has at most `limit` rows."""
        taken, size = [], 0
        while self._clients:
            client = self.next()
            tasks = self._clients[client]
            if size + tasks[0].size > limit:
                break
            taken.append(tasks.popleft())
            size += taken[-1].size
            if tasks:
                self._clients.move_to_end(client)
            else:
                del self._clients[client]
        self.size -= size
        return taken
