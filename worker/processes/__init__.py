"""The child processes of a worker: how they are started, confined and read."""
