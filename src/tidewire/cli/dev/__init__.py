"""``tidewire dev``: all services of a project, each in a process of its own, started again when its code changes."""
