"""Floor 4: the running service. Adapters arrive here as arguments; nothing here knows one by name."""
