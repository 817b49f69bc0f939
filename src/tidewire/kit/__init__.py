"""What adapters share: safe handling of files, locks between processes. Imports values and seams only."""
