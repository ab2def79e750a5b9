"""Where a job meets a machine: knows rows and processes, never tensors."""
