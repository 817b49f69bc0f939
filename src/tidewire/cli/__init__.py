"""The command line: thin, on top of everything; it reads and calls what is below."""
