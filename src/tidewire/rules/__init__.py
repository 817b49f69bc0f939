"""Floor 3: pure decisions. Nothing in here awaits, reads a clock or does I/O."""
