"""A shop in Django that takes orders and bills them."""
