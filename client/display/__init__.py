"""Answers of the service as text for a terminal: pure functions that return renderables of rich, and a live view."""
