"""The cases of the store suite, one file to a section."""
