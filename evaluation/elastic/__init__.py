"""What token schedules cost and keep on real images (Tables 3.1 and 3.2)."""
