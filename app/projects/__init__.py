"""Projects: API keys, quotas, usage."""
