"""Intake: inspection of uploaded files, and import of third-party weights."""
