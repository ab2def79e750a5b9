"""The front end: knows people and rows, never tensors."""
