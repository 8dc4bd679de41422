"""The way to the coordinator: whether anybody answers there, what is known of it, and what it costs in a month."""
