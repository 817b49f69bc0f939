"""What is shipped for testing: the conformance suites that every adapter passes, ours and other people's."""
