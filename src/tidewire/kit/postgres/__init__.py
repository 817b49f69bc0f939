"""PostgreSQL, as every adapter to it sees it: where it is, its connections, what its errors mean."""
