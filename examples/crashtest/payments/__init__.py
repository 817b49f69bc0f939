"""An example: a service that is right, a service that is not, and what finds out."""
