"""A shop of five services, written as any user of tidewire would write them."""
