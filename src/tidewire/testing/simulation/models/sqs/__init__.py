"""The model of an SQS-like broker: message groups, visibility, receipts that go stale, a count nobody can turn back."""
