"""The cases, a file per section of the catalogue. Every function named ``test_…`` is one; it takes a `Bench`."""
