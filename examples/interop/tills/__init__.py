"""A service that is told of orders by tills which know nothing of Tidewire, and tells others of the money."""
