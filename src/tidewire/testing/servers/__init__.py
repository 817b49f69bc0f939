"""Real servers, private and short-lived: each on a free port of loopback, with a data folder of its own."""
