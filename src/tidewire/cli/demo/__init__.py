"""``tidewire demo``: the shop, its supervisor, and its books."""
