"""What an operator does to a running system: looked at, planned, done, and written to the audit.

Functions on the seams, with no screen: the command line and the console call the same ones.
"""
