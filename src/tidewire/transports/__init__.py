"""Transports: adapters to brokers; each opens with its `open_…` function."""
