"""The cases of the codec suite, one file to a section."""
