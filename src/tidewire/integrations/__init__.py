"""What fits tidewire into frameworks."""
