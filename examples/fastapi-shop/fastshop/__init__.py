"""A shop that takes orders over HTTP with FastAPI and SQLAlchemy, and bills them."""
