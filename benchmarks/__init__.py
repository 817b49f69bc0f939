"""``make bench``: ratios measured in one run, beside a native twin that does the same SQL with no framework."""
