"""The worker: runs claimed jobs in child processes; knows rows and processes, never tensors."""
