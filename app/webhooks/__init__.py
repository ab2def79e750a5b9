"""Webhooks: subscriptions, the sender of deliveries, and the policy of URLs that it may call."""
